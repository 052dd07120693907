"""How a refusal is worded: one line that names the file and the tensor, whatever they are called.

Names come from strangers' files, so they are shown escaped and cut.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

from glm_mlx.errors import CheckpointError

_SHOWN_NAMES = 5
_SHOWN_CHARACTERS = 120
_short = reprlib.Repr()
_short.maxstring = _SHOWN_CHARACTERS
_short.maxlist = 8


def quote(value: object) -> str:
    """Return `value` as Python writes it: control characters escaped, the long part left out."""
    text = _short.repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def join(names: Sequence[str]) -> str:
    """Return the first five names quoted, and the number of the others."""
    shown = ", ".join(map(quote, names[:_SHOWN_NAMES]))
    rest = len(names) - _SHOWN_NAMES
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def bad_tensor(file: object, name: str, found: str) -> CheckpointError:
    return CheckpointError(f"tensor {quote(name)}: {found}", file=file, field=name)


def unreadable(file: object, cause: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot be read: {cause.strerror}; check the path and its permissions", file=file
    )


def truncated(
    file: object, *, expected_bytes: int, found_bytes: int, tensor: str | None = None
) -> CheckpointError:
    place = "" if tensor is None else f" in tensor {quote(tensor)}"
    return CheckpointError(
        f"truncated{place}: {expected_bytes:,} bytes expected, {found_bytes:,} found; "
        "download it again",
        file=file,
        field=tensor,
    )
