"""Jobs that tell what became of them, for tests of the thread that does them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from glm_mlx.generate.owner import Job, Owner

T = TypeVar("T")


class Counting:
    """A job that counts, and tells how far it got, when it was closed and in which threads."""

    def __init__(self, stop: int = 10**9, pause_seconds: float = 0.0) -> None:
        self.stop, self.pause_seconds = stop, pause_seconds
        self.given = 0
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def __call__(self) -> Job[int]:
        try:
            for number in range(self.stop):
                time.sleep(self.pause_seconds)
                self.threads.add(threading.get_ident())
                self.given = number + 1
                yield number
        finally:
            self.threads.add(threading.get_ident())
            self.closed.set()


def run(owner: Owner, function: Callable[[], T]) -> T:
    """Call `function` in the owner's thread, between two steps of its jobs; return its result."""
    results: list[T] = []

    def job() -> Job[None]:
        results.append(function())
        yield from ()

    for _ in owner.stream(job):
        pass
    return results.pop()
