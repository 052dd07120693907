"""The owner thread: fair turns, cancelling, errors, closing; and that nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from makers.jobs import Counting, run

from glm_mlx.errors import ClosedError, OptionError
from glm_mlx.generate.owner import Job, Owner

SOON_SECONDS = 10


def fail() -> None:
    raise KeyError("of a job")


def test_everything_runs_in_one_thread_of_its_own(owner: Owner) -> None:
    job = Counting(20)
    home = run(owner, threading.get_ident)
    assert list(owner.stream(job)) == list(range(20))
    assert job.threads == {home}
    assert home != threading.get_ident()
    assert run(owner, lambda: None) is None


def test_errors_reach_the_caller_and_the_owner_goes_on(owner: Owner) -> None:
    with pytest.raises(KeyError, match="of a job") as caught:
        run(owner, fail)
    assert "in fail" in "".join(traceback.format_exception(caught.value))
    with pytest.raises(SystemExit):
        run(owner, lambda: sys.exit(3))
    assert run(owner, lambda: 7) == 7


def test_items_before_an_error_are_delivered(owner: Owner) -> None:
    def job() -> Job[int]:
        yield 1
        fail()

    stream = owner.stream(job)
    assert next(stream) == 1
    with pytest.raises(KeyError):
        next(stream)


def test_open_jobs_take_turns(owner: Owner) -> None:
    turns: list[str] = []
    enough = threading.Event()

    def long() -> Job[str]:
        while not enough.is_set():
            turns.append("long")
            yield None

    def short() -> Job[str]:
        for _ in range(3):
            turns.append("short")
            yield None
        yield "done"

    reader = threading.Thread(target=lambda: list(owner.stream(long)))
    reader.start()
    while not turns:
        time.sleep(0.001)
    assert list(owner.stream(short)) == ["done"]
    enough.set()
    reader.join()
    first, last = turns.index("short"), len(turns) - turns[::-1].index("short")
    assert turns[first:last] == ["short", "long", "short", "long", "short"]


def test_two_streams_of_one_reader_do_not_wait_for_each_other(owner: Owner) -> None:
    streams = [owner.stream(Counting(50)) for _ in range(3)]
    assert list(zip(*streams, strict=True)) == [(n, n, n) for n in range(50)]


def test_slow_reader_stops_its_own_job_only(owner: Owner) -> None:
    unread = Counting()
    slow = owner.stream(unread)
    assert next(slow) == 0
    assert len(list(owner.stream(Counting(500)))) == 500
    assert unread.given < 20
    assert [next(slow) for _ in range(100)] == list(range(1, 101))


@pytest.mark.parametrize("how", ["close", "drop", "raise"])
def test_leaving_a_stream_closes_its_job_in_the_owner(how: str, owner: Owner) -> None:
    job = Counting()
    stream = owner.stream(job)
    next(stream)
    if how == "close":
        stream.close()
    elif how == "raise":
        with pytest.raises(ZeroDivisionError):
            stream.throw(ZeroDivisionError())
    del stream
    assert job.closed.wait(SOON_SECONDS)
    assert job.threads == {run(owner, threading.get_ident)}


def test_stream_never_begun_runs_nothing(owner: Owner) -> None:
    job = Counting()
    owner.stream(job).close()
    run(owner, lambda: None)
    assert not job.threads


def test_interrupt_of_a_waiting_caller_cancels(owner: Owner) -> None:
    closed, reader = threading.Event(), threading.get_ident()

    def job() -> Job[int]:
        try:
            signal.pthread_kill(reader, signal.SIGINT)
            while True:
                time.sleep(0.001)
                yield None
        finally:
            closed.set()

    with pytest.raises(KeyboardInterrupt):
        next(owner.stream(job))
    assert closed.wait(SOON_SECONDS)


def test_call_from_inside_a_job_is_refused_not_a_deadlock(owner: Owner) -> None:
    with pytest.raises(OptionError, match="callback of the same model"):
        run(owner, lambda: run(owner, lambda: 1))
    with pytest.raises(OptionError, match="callback of the same model"):
        run(owner, lambda: next(owner.stream(Counting())))
    other = Owner()
    assert run(owner, lambda: run(other, lambda: 5)) == 5
    other.close()


def test_close_ends_open_streams_and_refuses_new_ones() -> None:
    owner, job = Owner(), Counting()
    stream, begun_late = owner.stream(job), owner.stream(Counting())
    next(stream)
    owner.close()
    owner.close()
    assert job.closed.is_set()
    with pytest.raises(ClosedError, match="closed while"):
        list(stream)
    for use in (lambda: run(owner, fail), lambda: owner.stream(job), lambda: next(begun_late)):
        with pytest.raises(ClosedError, match="load it again"):
            use()


def test_close_from_inside_a_job_ends_it_after_the_step(owner: Owner) -> None:
    def close() -> str:
        owner.close()
        return "result"

    assert run(owner, close) == "result"
    with pytest.raises(ClosedError):
        run(owner, lambda: None)


def test_forked_child_is_refused(owner: Owner) -> None:
    run(owner, lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        refused = 0
        owner.close()
        for use in (Owner, lambda: run(owner, fail), lambda: owner.stream(Counting())):
            try:
                use()
            except ClosedError as error:
                refused += "fork" in str(error)
        os._exit(refused - 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def os_threads() -> int:
    """Threads the operating system counts, where it tells; else those Python knows."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def test_threads_are_used_again() -> None:
    homes: set[int] = set()
    counts: list[int] = []
    gc.freeze()  # closing collects garbage; a test runner's heap makes that slow
    for _ in range(100):
        owner = Owner()
        run(owner, lambda: mx.eval(mx.ones(4) + 1))
        homes.add(run(owner, threading.get_ident))
        owner.close()
        counts.append(os_threads())
    gc.unfreeze()
    assert len(homes) == 1
    assert counts[-1] == counts[0]


def test_dropped_owner_gives_its_thread_back() -> None:
    owner = Owner()
    finished = owner._desk.finished
    del owner
    gc.collect()
    assert finished.wait(SOON_SECONDS)


class Weight:
    """Something whose end can be watched."""


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_a_job_used_outlives_it(fails: bool, owner: Owner) -> None:
    weight = Weight()
    watch = weakref.ref(weight)

    def use(weight: Any) -> Callable[[], Job[int]]:
        def job() -> Job[int]:
            held = weight
            yield id(held)
            if fails:
                raise KeyError

        return job

    gc.collect()
    gc.disable()
    try:
        try:
            list(owner.stream(use(weight)))
        except KeyError:
            assert fails
        del weight
        deadline = time.monotonic() + SOON_SECONDS
        while watch() is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert watch() is None
    finally:
        gc.enable()


def test_many_threads_at_once(owner: Owner) -> None:
    read: dict[int, list[int]] = {}

    def work(number: int) -> None:
        read[number] = [n for _ in range(5) for n in owner.stream(Counting(20 + number))]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {number: list(range(20 + number)) * 5 for number in range(8)}
