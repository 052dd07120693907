"""Files that either exist whole or not at all, even after a power cut.

A file is written under a name that ends in `.part`, flushed to the disk, renamed, and then its
folder is flushed. Knows bytes and offsets; what they mean is the plan's business.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from glm_mlx.checkpoint.layout import ShardPlan
from glm_mlx.errors import ResourceError

PART = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What some network and FAT volumes answer; elsewhere than on Linux the two are not one number.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
_BLOCK_BYTES = 4 << 20


class ShardWriter:
    """Writes one safetensors file in any order of its tensors; a context manager.

    When it fails it leaves the part file, or nothing. It holds no data between two calls.

    Raises:
        ResourceError: from any method; the disk is full or fails.
    """

    def __init__(self, folder: Path, plan: ShardPlan) -> None:
        self._file = folder / plan.file_name
        self._part = folder / f"{plan.file_name}{PART}"
        self._spans = plan.spans
        self._size_bytes = plan.size_bytes
        self._written = {name: start for name, (start, _) in plan.spans.items()}
        self._behind = [*plan.spans][::-1]  # not yet hashed to their end, the next one last
        self._digest = hashlib.sha256()
        self._hashed = 0
        with disk_errors(self._part):
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            self._descriptor = os.open(self._part, flags, 0o666)
        try:
            self._append(memoryview(plan.header), 0)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Append bytes to a tensor; tensors may take turns."""
        start = self._written[name]
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # nothing cannot be cast
        self._written[name] = start + len(view)
        assert self._written[name] <= self._spans[name][1], f"{name} is full"
        self._append(view, start)
        self._catch_up()

    def finish(self) -> str:
        """Give the file its final name, flushed to the disk, and return its sha256 in hex."""
        self._catch_up()
        assert self._hashed == self._size_bytes, f"not full: {self._behind[-1]}"
        with disk_errors(self._part):
            sync(self._descriptor)
        self._close()
        with disk_errors(self._file):
            os.replace(self._part, self._file)
            sync_folder(self._file.parent)
        return self._digest.hexdigest()

    def _append(self, data: memoryview, position: int) -> None:
        """Write all of `data`; hash it when it goes on where the hash stands."""
        in_order = position == self._hashed
        with disk_errors(self._part):
            write_all(self._descriptor, data, position)
        if in_order:
            self._digest.update(data)
            self._hashed += len(data)

    def _catch_up(self) -> None:
        """Hash what was written ahead of the hash and is now next."""
        while self._behind:
            name = self._behind[-1]
            while self._hashed < self._written[name]:
                size_bytes = min(_BLOCK_BYTES, self._written[name] - self._hashed)
                with disk_errors(self._part):
                    block = os.pread(self._descriptor, size_bytes, self._hashed)
                assert block, "what was written can be read"
                self._digest.update(block)
                self._hashed += len(block)
            if self._hashed < self._spans[name][1]:
                return
            self._behind.pop()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with disk_errors(self._part):
                os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a small file in one step: after any failure `path` is what it was, or the new one.

    Raises:
        ResourceError: the disk is full or fails.
    """
    part = path.with_name(f"{path.name}{PART}")
    with disk_errors(path):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        try:
            write_all(descriptor, memoryview(data), 0)
            sync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, path)
        sync_folder(path.parent)


def write_all(descriptor: int, data: memoryview, position: int) -> None:
    """Write every byte of `data` at `position`, however little a call takes."""
    while data:
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count


def sync(descriptor: int) -> None:
    """Return when the file's bytes are on the disk itself and not in its cache."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError as cause:
            if cause.errno not in _CANNOT_SYNC:
                raise
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk, where the volume can say so."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sync(descriptor)
    except OSError as cause:
        if cause.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a ResourceError that says what to do about `path`."""
    try:
        yield
    except OSError as cause:
        if cause.errno in _FULL:
            found = f"the disk is full ({cause.strerror}); free some space"
        else:
            found = f"cannot be written: {cause.strerror}; check the disk"
        raise ResourceError(
            f"{found}, then run the same command again to continue", file=path
        ) from cause
