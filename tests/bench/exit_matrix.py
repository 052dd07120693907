"""Start a process, generate, and exit, in every way an application might; print JSON.

    python tests/bench/exit_matrix.py [--count N] [--only NAME]

Each run is a process of its own with a tiny random model. A scenario passes if every run ends with
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
from pathlib import Path
from typing import Any

from glm_mlx.errors import GLMError

sys.path.insert(0, str(Path(__file__).parents[1]))

TIMEOUT_SECONDS = 60
PROMPT = [i % 300 for i in range(400)]


class Model:
    """A two-layer model of random weights behind an owner."""

    def __init__(self) -> None:
        from glm_mlx.generate.owner import Owner

        self.owner = Owner()
        self.decoder = self.owner.run(self._build)

    @staticmethod
    def _build() -> Any:
        import mlx.core as mx
        from makers.folders import Shape, make_config

        from glm_mlx.config import parse_config
        from glm_mlx.model.decoder import Decoder

        mx.random.seed(0)
        decoder = Decoder(parse_config(make_config("glm4", Shape())))
        mx.eval(decoder.parameters())
        return decoder

    def job(self, tokens: int, prompt: list[int] | None = None, **options: Any) -> Any:
        """A function that starts a reply of this many tokens."""
        from glm_mlx.generate.engine import Generation
        from glm_mlx.generate.sampling import Sampling
        from glm_mlx.generate.stream import stream_text
        from glm_mlx.text.detokenizer import Detokenizer

        return lambda: stream_text(
            Generation(
                self.decoder, prompt or PROMPT, Sampling(), max_tokens=tokens, prefill_step_size=64
            ),
            Detokenizer(lambda id: bytes([id % 128])),
            **options,
        )

    def read(self, tokens: int, **options: Any) -> Any:
        return self.owner.stream(self.job(tokens, **options))


def generate(tokens: int = 20) -> None:
    for _ in Model().read(tokens):
        pass


def main_thread() -> None:
    generate()


def main_thread_closed() -> None:
    model = Model()
    list(model.read(20))
    model.owner.close()


def kept_to_the_end() -> None:
    globals()["kept"] = model = Model()
    globals()["reply"] = reply = model.read(3000)
    next(reply)


def worker_thread() -> None:
    thread = threading.Thread(target=generate)
    thread.start()
    thread.join()


def worker_thread_outlives_main() -> None:
    threading.Thread(target=generate, args=(100,)).start()


def daemon_thread_still_reading() -> None:
    reading = threading.Event()

    def read() -> None:
        with contextlib.suppress(GLMError):  # the model is closed beneath it
            for _ in Model().read(3000):
                reading.set()

    threading.Thread(target=read, daemon=True).start()
    reading.wait()


def opened_in_a_thread_used_in_main() -> None:
    models: list[Model] = []
    thread = threading.Thread(target=lambda: models.append(Model()))
    thread.start()
    thread.join()
    list(models[0].read(20))


def with_asyncio() -> None:
    async def main() -> None:
        model = Model()
        async for _ in model.owner.astream(model.job(20)):
            pass

    asyncio.run(main())


def asyncio_cancelled() -> None:
    async def main() -> None:
        model = Model()

        async def read() -> None:
            async for _ in model.owner.astream(model.job(3000)):
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(main())


def asyncio_left_in_the_middle() -> None:
    async def main() -> None:
        model = Model()
        async for _ in model.owner.astream(model.job(3000)):
            break

    asyncio.run(main())


def executor() -> None:
    with ThreadPoolExecutor() as pool:
        for future in [pool.submit(generate) for _ in range(3)]:
            future.result()


def executor_working_at_exit() -> None:
    globals()["pool"] = pool = ThreadPoolExecutor()
    model = Model()
    pool.submit(lambda: list(model.read(100)))


def cancelled_in_prefill() -> None:
    cancel = threading.Event()

    def on_prefill(done: int, total: int) -> None:
        if done:
            cancel.set()

    (last,) = Model().read(3000, cancel=cancel, on_prefill=on_prefill)
    assert last.finish_reason == "cancelled"
    assert last.usage.completion_tokens == 0


def cancelled_in_decode() -> None:
    reply = Model().read(3000)
    next(reply)
    reply.close()


def busy_at_exit() -> None:
    model = Model()
    threading.Thread(target=lambda: model.owner.run(lambda: time.sleep(0.3)), daemon=True).start()
    time.sleep(0.05)


def sys_exit() -> None:
    next(Model().read(3000))
    sys.exit(7)


def exception() -> None:
    reply = Model().read(3000)
    next(reply)
    raise RuntimeError("expected")


def interrupted() -> None:
    reply = Model().read(3500)
    next(reply)
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    for _ in reply:
        pass


def interrupted_in_prefill() -> None:
    def on_prefill(done: int, total: int) -> None:
        if done == 64:
            os.kill(os.getpid(), signal.SIGINT)

    for _ in Model().read(500, prompt=PROMPT * 8, on_prefill=on_prefill):
        pass


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
    busy_at_exit: 0,
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
