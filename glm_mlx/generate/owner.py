"""The one thread that does a model's MLX work, and the faces through which others give it jobs.

A job is a generator. The owner steps all open ones in turn, one item at a time, so a short reply
runs beside a long one and any of them can be cancelled between two steps. Knows nothing of what
the jobs compute.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from glm_mlx.errors import ClosedError, OptionError

from .threads import pool

T = TypeVar("T")

# What a job yields: an item for its reader, or None to let others have a turn.
Job = Generator[T | None, None, None]

# Items a job may be ahead of its reader.
_AHEAD_ITEMS = 8


class Owner:
    """Runs jobs in one thread of its own, whoever asks and from wherever.

    What a job raises is raised in its caller; the owner goes on. An owner that is dropped closes
    itself.
    """

    def __init__(self) -> None:
        """Take a thread.

        Raises:
            ClosedError: the interpreter is exiting, or this process was forked from one that had
                a model open.
        """
        self._pid = os.getpid()
        self._desk = _Desk()
        pool.lend(self._desk)
        weakref.finalize(self, self._desk.stop).atexit = False

    def stream(self, start: Callable[[], Job[T]]) -> Generator[T, None, None]:
        """Iterate a job's items; closing or dropping the iterator cancels the job.

        The job begins at the first item asked for and stays a few items ahead of the reader.

        Args:
            start: makes the job; called, like the job, in the owner's thread.

        Raises:
            ClosedError: the owner is closed, or belongs to the parent of this process.
            OptionError: called from inside a job of this owner.
        """
        self._check()
        return self._stream(start)

    def astream(self, start: Callable[[], Job[T]]) -> AsyncGenerator[T, None]:
        """The same for asyncio: closing the iterator or cancelling its task cancels the job."""
        self._check()
        return self._astream(start)

    def close(self) -> None:
        """End all jobs and give the thread back. Jobs still read raise `ClosedError` there."""
        if self._pid == os.getpid():
            self._desk.stop()
            if threading.get_ident() != self._desk.thread_id:
                self._desk.finished.wait()

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ClosedError(
                "this model belongs to the process this one was forked from; "
                "start the process with the spawn method and load the model there"
            )
        if self._desk.stopping:
            raise ClosedError("the model is closed; load it again")
        if threading.get_ident() == self._desk.thread_id:
            raise OptionError(
                "this call comes from a callback of the same model and would wait for itself; "
                "make it from another thread, or after the reply"
            )

    def _stream(self, start: Callable[[], Job[T]]) -> Generator[T, None, None]:
        items: SimpleQueue[T | _End] = SimpleQueue()
        line = _Line(start, items.put)
        try:
            self._desk.post(line)
            while not isinstance(item := _next_of(items), _End):
                self._desk.taken(line)
                yield item
        finally:
            self._desk.cancel(line)
        item.raise_error()

    async def _astream(self, start: Callable[[], Job[T]]) -> AsyncGenerator[T, None]:
        import asyncio  # not everyone's cost

        items: asyncio.Queue[T | _End] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(item: T | _End) -> None:
            try:
                loop.call_soon_threadsafe(items.put_nowait, item)
            except RuntimeError:  # the loop is closed: nobody reads on
                line.cancelled = True

        line = _Line(start, deliver)
        try:
            self._desk.post(line)
            while not isinstance(item := await items.get(), _End):
                self._desk.taken(line)
                yield item
        finally:
            self._desk.cancel(line)
        item.raise_error()


def _next_of(items: SimpleQueue[T]) -> T:
    """Wait for an item, looking up now and then: a signal that came just before is then handled."""
    while True:
        with suppress(Empty):
            return items.get(timeout=0.2)


@dataclass
class _End:
    """Follows the last item of a job: how it ended."""

    error: BaseException | None

    def raise_error(self) -> None:
        """Raise the error, if there was one, holding on to nothing its traceback holds."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error


class _Line(Generic[T]):
    """A job and the way to its reader.

    `_sent` is written by the owner's thread alone, `taken` by the reader's alone, so neither needs
    a lock.
    """

    def __init__(self, start: Callable[[], Job[T]], deliver: Callable[[T | _End], object]) -> None:
        self._start = start
        self._deliver = deliver
        self._job: Job[T] | None = None
        self._sent = 0
        self.taken = 0
        self.cancelled = False

    def can_step(self) -> bool:
        """Whether the reader has room, or is gone."""
        return self.cancelled or self._sent - self.taken < _AHEAD_ITEMS

    def step(self) -> bool:
        """Run the job to its next item; return whether there may be another."""
        if self.cancelled:
            return self.end()
        try:
            if self._job is None:
                self._job = self._start()
            item = next(self._job)
        except StopIteration:
            return self.end()
        except BaseException as error:  # the reader's to handle, be it SystemExit
            return self.end(error)
        if item is not None:
            self._sent += 1
            self._deliver(item)
        return True

    def end(self, error: BaseException | None = None) -> bool:
        """Close the job here, in its own thread; tell the reader; return False."""
        try:
            if self._job is not None:
                self._job.close()
        except BaseException as closing_error:
            error = error or closing_error
        self._job = None
        self._deliver(_End(error))
        return False


class _Desk:
    """Where jobs wait for the thread and the thread waits for jobs.

    Everything but `serve` may be called from any thread. `SimpleQueue.put` may even be called
    while the garbage collector closes a generator in the midst of another call.
    """

    def __init__(self) -> None:
        self._mail: SimpleQueue[_Line[Any] | None] = SimpleQueue()  # None: look again who can step
        self._lines: deque[_Line[Any]] = deque()
        self._posting = threading.Lock()
        self.stopping = False
        self.finished = threading.Event()
        self.thread_id: int | None = None

    def post(self, line: _Line[Any]) -> None:
        """Add a job.

        Raises:
            ClosedError: there is no thread to run it any more.
        """
        with self._posting:
            if self.stopping:
                raise ClosedError("the model is closed; load it again")
            self._mail.put(line)

    def taken(self, line: _Line[Any]) -> None:
        """Note that the reader took an item, so that there is room for another."""
        line.taken += 1
        self._mail.put(None)

    def cancel(self, line: _Line[Any]) -> None:
        """Have the job closed at its next turn; nothing happens if it is over."""
        line.cancelled = True
        self._mail.put(None)

    def stop(self) -> None:
        """Have all jobs ended and the thread given back after the step being run."""
        with self._posting:
            self.stopping = True
        self._mail.put(None)

    def serve(self) -> None:
        """Step the jobs in turn until told to stop."""
        self.thread_id = threading.get_ident()
        while self._wait():
            self._turn()
        while not self._mail.empty():
            self._open_mail()
        for line in self._lines:
            line.end(ClosedError("the model was closed while this was running"))
        self._lines.clear()

    def _wait(self) -> bool:
        """Take in what came; sleep while no job can step. False once told to stop."""
        while not self.stopping and not (
            self._mail.empty() and any(line.can_step() for line in self._lines)
        ):
            self._open_mail()
        return not self.stopping

    def _open_mail(self) -> None:
        if (line := self._mail.get()) is not None:
            self._lines.append(line)

    def _turn(self) -> None:
        line = self._lines.popleft()
        if not line.can_step() or line.step():
            self._lines.append(line)
