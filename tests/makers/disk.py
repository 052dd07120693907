"""A disk that fails, or a process that is killed, at one call of our choice."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CALLS = (
    "open",
    "close",
    "pwrite",
    "pread",
    "preadv",
    "fsync",
    "replace",
    "rename",
    "mkdir",
    "unlink",
    "rmdir",
    "listdir",
    "ftruncate",
    "statvfs",
)


class Killed(BaseException):
    """What `kill -9` looks like from inside: nothing that follows reaches the disk."""


class Disk:
    """Notes the calls in their order and makes one of them raise.

    Attributes:
        log: (name of the call, name of the file it is about) of each call so far.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        *,
        fail_at: int | None,
        error: BaseException,
        afterwards: bool,
    ) -> None:
        self.log: list[tuple[str, str]] = []
        self._fail_at = fail_at
        self._error = error
        self._afterwards = afterwards
        self._names: dict[int, str] = {}
        self._dead = False
        for name in CALLS:
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))
        if sys.platform == "darwin":  # whose way to flush is a call of its own
            patch.setattr(fcntl, "fcntl", self._wrap("fsync", fcntl.fcntl))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self._dead and name != "close":  # the kernel closes what the dead leave open
                raise Killed
            self.log.append((name, self._name_of(arguments[0])))
            fails = len(self.log) - 1 == self._fail_at
            self._dead |= fails and isinstance(self._error, Killed)
            if fails and name != "close" and not self._afterwards:  # a close is never undone
                raise self._error
            try:
                value = call(*arguments, **options)
            finally:
                if fails:
                    raise self._error
            if name == "open":
                self._names[value] = Path(arguments[0]).name
            return value

        return wrapped

    def _name_of(self, what: Any) -> str:
        return self._names.get(what, "?") if isinstance(what, int) else Path(what).name


@contextmanager
def failing_disk(
    fail_at: int | None = None, error: BaseException | None = None, *, afterwards: bool = False
) -> Iterator[Disk]:
    """Within the block, disk call number `fail_at` raises `error`, before or after its work."""
    with pytest.MonkeyPatch.context() as patch:
        yield Disk(patch, fail_at=fail_at, error=error or Killed(), afterwards=afterwards)


def skip_flushes(patch: pytest.MonkeyPatch) -> None:
    """Let nothing wait for the disk: a process sees no difference, and it is most of the time."""
    patch.setattr(os, "fsync", lambda _: None)
    if sys.platform == "darwin":
        patch.setattr(fcntl, "fcntl", lambda *_: 0)
