"""Text from stdin, whole or entry by entry: UTF-8, or an error that says where it is not."""

from __future__ import annotations

import sys
from contextlib import suppress

from glm_mlx.cli.terminal import is_terminal
from glm_mlx.errors import OptionError

# Some ten times the longest context there is; an endless pipe ends here, not in the memory.
_LIMIT_BYTES = 64 << 20
_BLOCK = '"""'


def read_all() -> str:
    """Read stdin to its end, dropping one final line break, which `echo` adds.

    Raises:
        OptionError: it is not UTF-8, or longer than any context.
    """
    raw = b"" if sys.stdin is None else sys.stdin.buffer.read(_LIMIT_BYTES + 1)
    if len(raw) > _LIMIT_BYTES:
        raise OptionError(f"stdin holds more than {_LIMIT_BYTES:,} bytes, the limit for a prompt")
    return _decode(raw).removesuffix("\n")


def read_entry() -> str:
    r"""Read what a person, or a script in their place, says next: a line or several.

    A line that ends with a backslash goes on with the next; three double quotes open a block that
    ends with three more.

    Raises:
        EOFError: there is nothing more.
        OptionError: a line is not UTF-8.
    """
    lines = [_read_line(">>> ")]
    with suppress(EOFError):  # the end of stdin ends an entry too
        if lines[0].startswith(_BLOCK):
            lines[0] = lines[0].removeprefix(_BLOCK)
            while not lines[-1].endswith(_BLOCK):
                lines.append(_read_line("... "))
            return "\n".join(lines).removesuffix(_BLOCK).strip("\n")
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1].removesuffix("\\")
            lines.append(_read_line("... "))
    return "\n".join(lines)


def _read_line(prompt: str) -> str:
    """Read one line, without its end; a person is shown the prompt, on stderr if need be."""
    if is_terminal(sys.stdin) and is_terminal(sys.stdout):
        return _decode(input(prompt).encode("utf-8", "surrogateescape"))
    if is_terminal(sys.stdin):
        print(prompt, end="", file=sys.stderr, flush=True)
    raw = b"" if sys.stdin is None else sys.stdin.buffer.readline()
    if not raw:
        raise EOFError
    return _decode(raw).rstrip("\r\n")


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise OptionError(
            f"stdin is not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start:,}"
        ) from error
