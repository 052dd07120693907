"""What an unfinished conversion remembers, in a file that is also its lock.

A log of JSON lines that is only appended to, never replaced, so that a lock on the file is a lock
on the name. A line that a crash cut short is the last one, and is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from glm_mlx.checkpoint.writer import disk_errors, sync, sync_folder, write_all
from glm_mlx.errors import OptionError

_BEGINNING = b'{"journal": "glm-mlx", '
_BLOCK_BYTES = 1 << 20


class Journal:
    """The log of one conversion, locked by this process until it is closed or removed.

    Attributes:
        fingerprint: of the conversion; None in a log that was never started, or whose beginning is
            lost.
        is_foreign: whether the file holds something else, which only `start` writes over.
        shards: name -> entry, of each shard recorded.
        replacing: whether an earlier result may have been moved out of the way.
    """

    def __init__(self, file: Path) -> None:
        """Open the file, or create it, and lock it.

        Raises:
            OptionError: another process holds it.
            OSError: it cannot be opened.
        """
        self._file = file
        self._descriptor = self._open()
        while not self._has_its_name():  # who held the lock until now has removed the file
            self.close()
            self._descriptor = self._open()

    def start(self, fingerprint: str) -> None:
        """Forget everything and begin the log of a conversion with this fingerprint."""
        self._forget()
        with disk_errors(self._file):
            os.ftruncate(self._descriptor, 0)
        self._append({"journal": "glm-mlx", "fingerprint": fingerprint, "pid": os.getpid()})
        with disk_errors(self._file):
            sync_folder(self._file.parent)

    def go_on(self) -> None:
        """Note that this process now holds a log begun by another."""
        self._append({"pid": os.getpid()})

    def record(self, shard: str, entry: Mapping[str, object]) -> None:
        """Note a shard that is whole and has its name."""
        self._append({"shard": shard, "entry": entry})

    def set_replacing(self, replacing: bool) -> None:
        self._append({"replacing": replacing})

    def remove(self) -> None:
        """Remove the file while it is still locked, then let it go.

        Raises:
            OSError: it is still there, or may be there again after a power cut.
        """
        os.unlink(self._file)
        sync_folder(self._file.parent)
        self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self) -> int:
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            is_held = _lock(descriptor)
            size_bytes = self._read(descriptor)
            if is_held or (is_held is None and _is_running(self._pid)):
                raise self._busy(is_sure=is_held is not None)
            if size_bytes > self._end and self.fingerprint is not None:
                os.ftruncate(descriptor, self._end)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _has_its_name(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._file))
        except FileNotFoundError:
            return False

    def _forget(self) -> None:
        self.fingerprint: str | None = None
        self.is_foreign = False
        self.shards: dict[str, dict[str, Any]] = {}
        self.replacing = False
        self._pid = 0
        self._end = 0

    def _read(self, descriptor: int) -> int:
        """Take in every whole line and return the size of the file."""
        self._forget()
        content = b""
        while block := os.pread(descriptor, _BLOCK_BYTES, len(content)):
            content += block
        self.is_foreign = not (content.startswith(_BEGINNING) or _BEGINNING.startswith(content))
        if self.is_foreign:
            return len(content)
        for line in content.splitlines(keepends=True):
            try:
                note = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                note = None
            if not _is_note(note):
                break
            self._apply(note)
            self._end += len(line)
        return len(content)

    def _apply(self, note: dict[str, Any]) -> None:
        self.fingerprint = note.get("fingerprint", self.fingerprint)
        self._pid = note.get("pid", self._pid)
        self.replacing = note.get("replacing", self.replacing)
        if "shard" in note:
            self.shards[note["shard"]] = note["entry"]

    def _append(self, note: Mapping[str, object]) -> None:
        line = json.dumps(note).encode() + b"\n"
        with disk_errors(self._file):
            write_all(self._descriptor, memoryview(line), self._end)
            sync(self._descriptor)
        self._end += len(line)
        self._apply(json.loads(line))  # as the next run will see it: lists for tuples

    def _busy(self, *, is_sure: bool) -> OptionError:
        holder = f"process {self._pid}" if self._pid else "another process"
        cure = "wait for it, stop it, or choose another destination"
        if not is_sure:
            cure = f"{cure}; remove this file if that process is no conversion"
        return OptionError(f"{holder} is writing this conversion; {cure}", file=self._file)


def _is_note(note: object) -> TypeGuard[dict[str, Any]]:
    """Whether a line is one that was written here, and not what a crash made of it."""
    if not isinstance(note, dict):
        return False
    kinds = {"fingerprint": str, "pid": int, "replacing": bool, "shard": str, "entry": dict}
    return all(isinstance(note.get(key, kind()), kind) for key, kind in kinds.items()) and (
        "shard" not in note or isinstance(note.get("entry", {}).get("sha256"), str)
    )


def _lock(descriptor: int) -> bool | None:
    """Lock the file; return whether another process holds it, None where nobody can tell."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # some network volumes know no locks
        return None
    return False


def _is_running(pid: int) -> bool:
    """Whether another process than this one has the number."""
    if pid in (0, os.getpid()):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True
