"""Run a `glm-mlx` command line whose disk fails, or whose process is hit, at a call of choice.

    python tests/makers/disturb.py HOW NUMBER convert SOURCE DEST ...

Counts the calls that change the disk from 1 on. HOW is what happens at call NUMBER: `fail` (this
call alone raises), `fail-on` (this one and all after it), `short` (a write writes half), `kill`,
`term`, `int` (the process gets the signal just before the call), or `list` (the calls are printed
to stderr at the end as JSON, nothing is disturbed).
"""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CALLS = (
    "open", "write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "fsync",
    "fdatasync", "truncate", "ftruncate", "posix_fallocate", "rename", "replace", "link",
    "symlink", "mkdir", "unlink", "remove", "rmdir",
)  # fmt: skip
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disturber:
    """Stands in front of the functions of `os` and counts."""

    def __init__(self, how: str, number: int) -> None:
        self.how, self.number = how, number
        self.calls: list[str] = []

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if not _changes_the_disk(name, arguments):
                return call(*arguments, **options)
            self.calls.append(name)
            here = len(self.calls) == self.number
            if self.how in SIGNALS and here:
                os.kill(os.getpid(), SIGNALS[self.how])
            elif self.how == "short" and here and name in ("write", "pwrite"):
                descriptor, data, *rest = arguments
                half = memoryview(data).cast("B")
                return call(descriptor, half[: (len(half) + 1) // 2], *rest)
            elif (self.how == "fail" and here) or (
                self.how == "fail-on" and len(self.calls) >= self.number
            ):
                code = errno.EIO if name == "fsync" else errno.ENOSPC
                raise OSError(code, os.strerror(code))
            return call(*arguments, **options)

        return wrapped


def _changes_the_disk(name: str, arguments: tuple[Any, ...]) -> bool:
    if name == "open":
        return bool(arguments[1] & _FOR_WRITING) and arguments[0] != os.devnull
    return not isinstance(arguments[0], int) or arguments[0] > 2


def main() -> None:
    how, number, *arguments = sys.argv[1:]
    from glm_mlx.cli import main as command_line

    disturber = Disturber(how, int(number))
    for name in CALLS:
        if hasattr(os, name):
            setattr(os, name, disturber.wrap(name, getattr(os, name)))
    try:
        command_line(arguments)
    finally:
        if how == "list":
            print(json.dumps(disturber.calls), file=sys.stderr)


if __name__ == "__main__":
    main()
