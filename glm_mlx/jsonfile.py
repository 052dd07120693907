"""JSON files from strangers: read whole, parse strictly, refuse with file and position.

Knows nothing of what the values mean; the caller says which error its users expect.
"""

from __future__ import annotations

import json
import math
import stat
from collections import Counter
from pathlib import Path
from typing import NoReturn

from glm_mlx.errors import InputFileError

MAX_BYTES = 10 << 20
MAX_DEPTH = 100
FOLDER_HINT = "is the folder complete?"  # nearly every file read here is part of a model


def read_json(
    path: Path,
    *,
    error: type[InputFileError],
    max_bytes: int = MAX_BYTES,
    absent_hint: str | None = FOLDER_HINT,
) -> object:
    """Parse one regular file of at most `max_bytes` as strict JSON (see `parse_json`).

    `absent_hint` is what to do if there is no such file.

    Raises:
        InputFileError: of class `error`; the file is absent, unreadable, not a regular file (a
            named pipe would block for ever), too large, or not strict JSON.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "folder" if stat.S_ISDIR(mode) else "special file"
            raise error(f"is a {kind}; expected a regular file", file=path)
        with path.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise error("file not found", file=path, hint=absent_hint) from None
    except OSError as cause:
        raise error(f"cannot be read: {cause.strerror}", file=path) from cause
    if len(raw) > max_bytes:
        raise error(f"is larger than {max_bytes:,} bytes, the limit for this file", file=path)
    return parse_json(raw, file=path, error=error)


def read_json_object(
    path: Path,
    *,
    error: type[InputFileError],
    max_bytes: int = MAX_BYTES,
    absent_hint: str | None = FOLDER_HINT,
) -> dict[str, object]:
    """Like `read_json`, for a file that must hold one JSON object."""
    value = read_json(path, error=error, max_bytes=max_bytes, absent_hint=absent_hint)
    if not isinstance(value, dict):
        raise error(f"holds {_kind(value)}; expected a JSON object", file=path)
    return value


def parse_json(
    raw: bytes, *, file: object, error: type[InputFileError], max_depth: int = MAX_DEPTH
) -> object:
    """Parse UTF-8 JSON, with or without a byte order mark.

    Stricter than `json.loads`: a key given twice, NaN and Infinity, numbers outside the range of
    a double and nesting beyond `max_depth` are refused, since the next reader may see other values.

    Raises:
        InputFileError: of class `error`, naming `file` and, for bad syntax, line and column.
    """

    def refuse(message: str, cause: Exception | None = None) -> NoReturn:
        raise error(message, file=file) from cause

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
            refuse(f"not strict JSON: key {twice[:80]!r} appears twice in one object")
        return found

    def finite(literal: str) -> float:
        number = float(literal)
        if not math.isfinite(number):
            refuse(f"not strict JSON: number {literal[:40]} is not finite")
        return number

    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = raw.count(b"\n", 0, cause.start) + 1
        refuse(f"not UTF-8: byte 0x{raw[cause.start]:02x} at line {line}", cause)
    if not text.strip():
        refuse("is empty; expected JSON")
    try:
        value: object = json.loads(
            text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
    except json.JSONDecodeError as cause:
        refuse(f"not JSON: {cause.msg} at line {cause.lineno}, column {cause.colno}", cause)
    except RecursionError as cause:
        refuse(f"nested more than {max_depth} levels deep", cause)
    except ValueError as cause:  # Python converts no integer of more than 4,300 digits
        refuse("not strict JSON: an integer has too many digits", cause)
    if _is_deeper(value, max_depth):
        refuse(f"nested more than {max_depth} levels deep")
    return value


def _is_deeper(value: object, max_depth: int) -> bool:
    level = [value]
    for _ in range(max_depth):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return any(isinstance(node, dict | list) for node in level)


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
