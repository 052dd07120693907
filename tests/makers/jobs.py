"""One call as an owner's job, for tests of the thread that does the jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from glm_mlx.generate.owner import Job, Owner

T = TypeVar("T")


def run(owner: Owner, function: Callable[[], T]) -> T:
    """Call `function` in the owner's thread, between two steps of its jobs; return its result."""
    results: list[T] = []

    def job() -> Job[None]:
        results.append(function())
        yield from ()

    for _ in owner.stream(job):
        pass
    return results.pop()
