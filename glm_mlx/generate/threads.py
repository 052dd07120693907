"""The threads that may touch MLX: lent out, taken back, and ended in order before the process is.

MLX keeps an operating-system thread for every Python thread that ever computed, so a thread is
used again rather than replaced. It aborts the process at exit if a thread is still computing, or
ended without `mx.clear_streams()`, after which that thread cannot compute again. Hence daemon
threads, which nobody has to close, and a hook at exit, which ends them. Knows nothing of models.
"""

from __future__ import annotations

import atexit
import gc
import os
import threading
from queue import SimpleQueue
from typing import Protocol

import mlx.core as mx

from glm_mlx.errors import ClosedError


class Task(Protocol):
    """Work that holds a thread until it is told to stop.

    Attributes:
        finished: set once `serve` has returned and the thread is free again.
    """

    finished: threading.Event

    def serve(self) -> None:
        """Work, in the thread lent; return soon after `stop`, holding on to nothing."""

    def stop(self) -> None:
        """Make `serve` return; called from any thread, any number of times."""


class _Thread(threading.Thread):
    """Serves one task after another; None is the last."""

    def __init__(self) -> None:
        super().__init__(name="glm-mlx", daemon=True)
        self.tasks: SimpleQueue[Task | None] = SimpleQueue()
        self.task: Task | None = None

    def run(self) -> None:
        try:
            while (task := self.tasks.get()) is not None:
                task.serve()
                finished = task.finished
                self.task = task = None
                gc.collect()  # arrays caught in cycles, while their streams exist
                mx.clear_cache()
                pool.take_back(self)
                finished.set()
        finally:
            mx.clear_streams()

    def end(self) -> None:
        """Stop the task and wait until the thread is over."""
        if (task := self.task) is not None:
            task.stop()
        self.tasks.put(None)
        self.join()


class Pool:
    """All threads of the process that compute; `pool` is the one there is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[_Thread] = []
        self._idle: list[_Thread] = []
        self._pid = 0  # of the process that started the threads
        self._exiting = False

    def lend(self, task: Task) -> None:
        """Run ``task`` in a thread of its own, one whose last task has finished if there is one.

        Raises:
            ClosedError: the interpreter is exiting, or this process was forked from one whose
                threads computed, which MLX does not survive.
        """
        with self._lock:
            if self._exiting:
                raise ClosedError("the interpreter is exiting; no model can be opened any more")
            if not self._threads:
                self._pid = os.getpid()
                atexit.register(self._end)
            if self._pid != os.getpid():
                raise ClosedError(
                    "this process was forked from one that had a model open, and would hang; "
                    "start it with the spawn method"
                )
            thread = self._idle.pop() if self._idle else self._started()
            thread.task = task
            thread.tasks.put(task)

    def take_back(self, thread: _Thread) -> None:
        """Let ``thread`` be lent again."""
        with self._lock:
            self._idle.append(thread)

    def _started(self) -> _Thread:
        thread = _Thread()
        thread.start()
        self._threads.append(thread)
        return thread

    def _end(self) -> None:
        with self._lock:
            self._exiting = True
        for thread in self._threads:
            if thread.is_alive():  # none is in a forked child
                thread.end()


pool = Pool()
