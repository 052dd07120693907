"""Which files of a model folder may be opened: regular files of its own.

A folder from a stranger may hold a link to a private file, a named pipe that blocks for ever or
a device that never ends. Knows names and links, not what a file says.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from glm_mlx.errors import InputFileError


def find_file(folder: Path, name: str, *, error: type[InputFileError]) -> Path | None:
    """Return `folder / name`, checked as in `own_file`; None if nothing has that name."""
    return own_file(folder, name, error=error) if os.path.lexists(folder / name) else None


def own_file(folder: Path, name: str, *, error: type[InputFileError]) -> Path:
    """Return `folder / name` when it is a regular file of the folder or of its Hub cache.

    Raises:
        InputFileError: of class `error`; the file is absent, a link out of the folder or to
            nothing, or not a regular file.
    """
    file = folder / name
    try:
        home = Path(os.path.realpath(folder, strict=True))
        target = Path(os.path.realpath(file, strict=True))
        mode = target.stat().st_mode
    except OSError as cause:
        if isinstance(cause, FileNotFoundError) and file.is_symlink():
            raise error("is a link to nothing; put the file itself here", file=file) from cause
        raise error(
            f"cannot be read: {cause.strerror}; check the path and its permissions", file=file
        ) from cause
    allowed = {home}
    if home.parent.name == "snapshots":  # snapshots/<revision>/<name> -> blobs/<hash>
        allowed.add(Path(os.path.realpath(home.parent.parent / "blobs")))
    if target.parent not in allowed:
        raise error(
            f"is a link out of the folder, to {str(target)!r:.120}; put the file itself here",
            file=file,
        )
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "special file"
        raise error(f"is a {kind}, not a regular file; put the file itself here", file=file)
    return file


def read_file(
    folder: Path, name: str, *, error: type[InputFileError], max_bytes: int
) -> bytes | None:
    """Return the bytes of `folder / name`, checked as in `own_file`; None if nothing has that name.

    Raises:
        InputFileError: of class `error`; as in `own_file`, or the file is larger than `max_bytes`.
    """
    file = find_file(folder, name, error=error)
    if file is None:
        return None
    try:
        with file.open("rb") as stream:
            raw = stream.read(max_bytes + 1)
    except OSError as cause:
        raise error(f"cannot be read: {cause.strerror}", file=file) from cause
    if len(raw) > max_bytes:
        raise error(f"is larger than {max_bytes:,} bytes, the limit for this file", file=file)
    return raw
