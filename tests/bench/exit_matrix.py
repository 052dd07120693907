"""Start a process, generate, and exit, in every way an application might; print JSON.

    python tests/bench/exit_matrix.py [--count N] [--only NAME]

Each run is a process of its own with the embedded model. A scenario passes if every run ends with
the code it should: no abort, no hang, and no complaint on stderr where nothing should go wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import glm_mlx

TIMEOUT_SECONDS = 60
PROMPT = "One two three four. " * 40
KEPT: list[object] = []  # what lives until the interpreter takes the module apart


def asked(glm: glm_mlx.GLM, tokens: int) -> dict[str, Any]:
    """Options for a reply of this many tokens; 3,000 would take half a minute."""
    never = dict.fromkeys(glm.tokenizer.stop_ids, -1e9)
    return {"max_tokens": tokens, "logit_bias": never, "prefill_step_size": 64}


def read(glm: glm_mlx.GLM, tokens: int, **options: Any) -> Any:
    return glm.stream(PROMPT, **asked(glm, tokens), **options)


def generate(tokens: int = 20) -> None:
    glm = glm_mlx.load()
    assert len(glm.generate(PROMPT, **asked(glm, tokens)).token_ids) == tokens


def main_thread() -> None:
    generate()


def main_thread_closed() -> None:
    with glm_mlx.load() as glm:
        list(read(glm, 20))


def kept_to_the_end() -> None:
    glm = glm_mlx.load()
    reply = read(glm, 3000)
    next(reply)
    KEPT.extend([glm, reply])


def worker_thread() -> None:
    thread = threading.Thread(target=generate)
    thread.start()
    thread.join()


def worker_thread_outlives_main() -> None:
    threading.Thread(target=generate, args=(50,)).start()


def daemon_thread_still_reading() -> None:
    reading = threading.Event()

    def work() -> None:
        with contextlib.suppress(glm_mlx.ClosedError):  # the model is closed beneath it
            for _ in read(glm_mlx.load(), 3000):
                reading.set()

    threading.Thread(target=work, daemon=True).start()
    reading.wait()


def opened_in_a_thread_used_in_main() -> None:
    opened: list[glm_mlx.GLM] = []
    thread = threading.Thread(target=lambda: opened.append(glm_mlx.load()))
    thread.start()
    thread.join()
    list(read(opened[0], 20))


def with_asyncio() -> None:
    async def main() -> None:
        glm = glm_mlx.load()
        async for _ in glm.astream(PROMPT, **asked(glm, 20)):
            pass

    asyncio.run(main())


def asyncio_cancelled() -> None:
    async def main() -> None:
        glm = glm_mlx.load()

        async def work() -> None:
            async for _ in glm.astream(PROMPT, **asked(glm, 3000)):
                pass

        task = asyncio.create_task(work())
        await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(main())


def asyncio_left_in_the_middle() -> None:
    async def main() -> None:
        glm = glm_mlx.load()
        async for _ in glm.astream(PROMPT, **asked(glm, 3000)):
            break

    asyncio.run(main())


def executor() -> None:
    with ThreadPoolExecutor() as pool:
        for future in [pool.submit(generate) for _ in range(3)]:
            future.result()


def executor_working_at_exit() -> None:
    glm = glm_mlx.load()
    pool = ThreadPoolExecutor()
    pool.submit(lambda: list(read(glm, 50)))
    KEPT.append(pool)


def cancelled_in_prefill() -> None:
    cancel = threading.Event()

    def on_prefill(done: int, total: int) -> None:
        if done:
            cancel.set()

    (last,) = read(glm_mlx.load(), 3000, cancel=cancel, on_prefill=on_prefill)
    assert last.finish_reason == "cancelled"
    assert last.usage.completion_tokens == 0


def cancelled_in_decode() -> None:
    reply = read(glm_mlx.load(), 3000)
    next(reply)
    reply.close()


def loading_at_exit() -> None:
    def work() -> None:
        with contextlib.suppress(glm_mlx.ClosedError):
            glm_mlx.load()

    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.05)


def sys_exit() -> None:
    next(read(glm_mlx.load(), 3000))
    sys.exit(7)


def exception() -> None:
    reply = read(glm_mlx.load(), 3000)
    next(reply)
    raise RuntimeError("expected")


def interrupted() -> None:
    reply = read(glm_mlx.load(), 3000)
    next(reply)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    for _ in reply:
        pass


def interrupted_in_prefill() -> None:
    def on_prefill(done: int, total: int) -> None:
        if done == 64:
            os.kill(os.getpid(), signal.SIGINT)

    list(read(glm_mlx.load(), 3000, on_prefill=on_prefill))


# What a process does, and the exit code it should have; a negative one is a signal's.
SCENARIOS: dict[Callable[[], None], int] = {
    main_thread: 0,
    main_thread_closed: 0,
    kept_to_the_end: 0,
    worker_thread: 0,
    worker_thread_outlives_main: 0,
    daemon_thread_still_reading: 0,
    opened_in_a_thread_used_in_main: 0,
    with_asyncio: 0,
    asyncio_cancelled: 0,
    asyncio_left_in_the_middle: 0,
    executor: 0,
    executor_working_at_exit: 0,
    cancelled_in_prefill: 0,
    cancelled_in_decode: 0,
    loading_at_exit: 0,
    sys_exit: 7,
    exception: 1,
    interrupted: -2,  # SIGINT
    interrupted_in_prefill: -2,
}


def run(name: str, expected: int) -> str:
    """Run a scenario in a process of its own; return how it ended: a code, "hang" or "noise"."""
    try:
        child = subprocess.run(
            [sys.executable, __file__, "--child", name],
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "hang"
    # A thread that fails does not change the exit code, but it does not fail in silence.
    return "noise" if child.returncode == expected == 0 and child.stderr else str(child.returncode)


def main() -> int:
    """Run the matrix and return 1 if any process ended otherwise than it should."""
    names = {scenario.__name__: scenario for scenario in SCENARIOS}
    parser = argparse.ArgumentParser(description="exit codes of processes that generate, as JSON")
    parser.add_argument("--count", type=int, default=50, help="processes a scenario")
    parser.add_argument("--only", choices=names, help="this scenario alone")
    parser.add_argument("--child", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        names[options.child]()
        return 0
    report: dict[str, Any] = {}
    wrong = 0
    for name, scenario in names.items():
        if options.only in (None, name):
            expected = SCENARIOS[scenario]
            started = time.perf_counter()
            ends = collections.Counter(run(name, expected) for _ in range(options.count))
            seconds = (time.perf_counter() - started) / options.count
            wrong += options.count - ends[str(expected)]
            report[name] = {"expected": expected, "mean_seconds": round(seconds, 2)} | ends
    print(json.dumps({"count": options.count, "wrong": wrong, "scenarios": report}, indent=2))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
