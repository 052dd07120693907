"""Stop conversions in every way there is, continue them, and print one JSON line a scenario.

    python tests/bench/kill_convert.py [--quick] [--only NAME,NAME] [--folder PLACE]

After every stop: no destination or a whole one, every shard under its final name whole, the source
untouched. After the continuation: the bytes of an uninterrupted run, at most one shard made twice,
nothing left over. All looking is done by `makers/conversions.py` with other people's readers.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from make_checkpoint import REAL_9B, make_checkpoint
from makers.conversions import (
    PATIENCE_SECONDS,
    PROGRAM,
    Conversion,
    Ended,
    Failure,
    Stop,
    disk_calls,
    disturbed,
    run,
)
from makers.folders import Shape

RESOURCES, INTERRUPTED, TERMINATED = 4, 130, 143
SMALL = Shape(  # 44 MB
    hidden_size=512,
    num_layers=8,
    num_heads=8,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=4096,
)
TINY = Shape(num_layers=2)  # few disk calls: each of them fails once
LARGE = replace(REAL_9B, num_layers=6)  # 4.9 GB

Figures = dict[str, object]
# A stop, and what is done before the conversion is continued.
Trial = tuple[Stop, Callable[[], None] | None]


class Matrix:
    """The conversions that are stopped, made when they are first needed."""

    def __init__(self, place: Path, large: Path | None, *, quick: bool, seed: int) -> None:
        self.place, self.quick = place, quick
        self.random = random.Random(seed)
        self._large = large
        self._made: dict[str, tuple[Conversion, float]] = {}

    def count(self, number: int) -> int:
        """How many stops a scenario of this many tries."""
        return max(number // 20, 3) if self.quick else number

    def conversion(self, name: str) -> tuple[Conversion, float]:
        """Return a conversion with its expected result, and the seconds it takes unstopped."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> tuple[Conversion, float]:
        source = self.place / f"{name}-source"
        shapes = {"tiny": (TINY, 100_000), "small": (SMALL, 10_000_000), "large": (LARGE, None)}
        shape, shard_bytes = shapes[name]
        if name == "large" and self._large is not None:
            source = self._large
        elif shard_bytes is None:
            make_checkpoint(source, "glm4", shape)
        else:
            make_checkpoint(source, "chatglm", shape, shard_bytes=shard_bytes)
        pieces = {"tiny": "20kB", "small": "1500kB", "large": "200MB"}[name]
        conversion = Conversion(source, ("-q", "--q-bits", "4", "--max-shard-size", pieces))
        started = time.perf_counter()
        conversion.convert_whole(self.place / f"{name}-whole")
        seconds = time.perf_counter() - started
        if name != "tiny":  # which stands by as the model to overwrite
            shutil.rmtree(self.place / f"{name}-whole")
        return conversion, seconds

    def measure(self, conversion: Conversion, trials: Iterator[Trial]) -> Figures:
        """Try every stop and count what came of it."""
        left: collections.Counter[str] = collections.Counter()
        codes: collections.Counter[str] = collections.Counter()
        failures: collections.Counter[str] = collections.Counter()
        first: list[str] = []
        redone = tracebacks = number = 0
        shards: list[int] = []
        for number, (stop, release) in enumerate(trials, 1):
            place = self.place / f"trial-{number}"
            try:
                outcome = conversion.try_stop(place, stop, release)
            except (Failure, AssertionError) as failure:
                kind, *details = failure.args or ("unreadable",)
                failures[str(kind)] += 1
                first.append(f"stop {number}: {kind}: {' '.join(map(str, details))}")
                shutil.rmtree(place, ignore_errors=True)
                continue
            left[outcome.left] += 1
            codes[str(outcome.ended.code)] += 1
            redone = max(redone, outcome.redone)
            tracebacks += "Traceback" in outcome.ended.errors
            if outcome.left == "unfinished":
                shards.append(outcome.shards)
        return {
            "stops": number,
            "failures": dict(failures),
            "first_failures": first[:5],
            "redone_shards_at_most": redone,
            "left": dict(left),
            "whole_shards_when_stopped": dict(sorted(collections.Counter(shards).items())),
            "exit_codes": dict(codes),
            "tracebacks": tracebacks,
        }


def hit(command: list[str], number: int, delay_seconds: float) -> Ended:
    """Start the command and send it a signal after a while."""
    process = subprocess.Popen(
        [*PROGRAM, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, errors = process.communicate(timeout=delay_seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return Ended(process.returncode, errors.decode("utf-8", "replace"))


def signals(matrix: Matrix, name: str, number: int, count: int) -> Figures:
    """Send a signal at random moments of the whole run."""
    conversion, seconds = matrix.conversion(name)
    delays = [matrix.random.uniform(0, seconds) for _ in range(count)]
    return matrix.measure(
        conversion, ((partial(hit, number=number, delay_seconds=d), None) for d in delays)
    )


def at_every_call(matrix: Matrix, how: str, *, overwrite: bool = False) -> Figures:
    """Disturb call N of the disk, for every N."""
    conversion, _ = matrix.conversion("tiny")
    if overwrite:
        before = matrix.place / "before"
        if not before.exists():
            Conversion(conversion.source, ("-q", "--q-bits", "8")).convert_whole(before)
        options = (*conversion.options, "--overwrite")
        conversion = replace(conversion, options=options, before=before)
    place = matrix.place / "calls"
    place.mkdir()
    if conversion.before is not None:
        shutil.copytree(conversion.before, place / "model")
    calls = disk_calls(conversion.command(place / "model"))
    shutil.rmtree(place)
    numbers: list[int] = [
        number
        for number, name in enumerate(calls, 1)
        if how != "short" or name in ("write", "pwrite")
    ]
    if matrix.quick:
        numbers = sorted(matrix.random.sample(numbers, min(12, len(numbers))))
    figures = matrix.measure(
        conversion, ((partial(disturbed, how=how, number=n), None) for n in numbers)
    )
    return {"calls": len(calls), "kinds": dict(collections.Counter(calls))} | figures


def file_limit(matrix: Matrix) -> Figures:
    """End every file at a size, the way the end of a disk does (EFBIG)."""
    conversion, _ = matrix.conversion("small")

    def limited(command: list[str], limit_bytes: int) -> Ended:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

        done = subprocess.run(
            [*PROGRAM, *command], capture_output=True, preexec_fn=limit, check=False
        )
        return Ended(done.returncode, done.stderr.decode("utf-8", "replace"))

    sizes = [0, 1, 1000, 100_000, 500_000, 1_000_000, 1_200_000, 1_400_000, 1_450_000, 1_490_000]
    return matrix.measure(
        conversion, ((partial(limited, limit_bytes=size), None) for size in sizes)
    )


def full_disk(matrix: Matrix) -> Figures:
    """Fill a small file system while the conversion is under way."""
    conversion, _ = matrix.conversion("small")
    disk = matrix.place / "disk"
    disk.mkdir()
    filler = disk / "filler"

    def fill(command: list[str], room_bytes: int) -> Ended:
        process = subprocess.Popen(
            [*PROGRAM, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None and not any(disk.rglob("*.part")):
            time.sleep(0.001)
        with filler.open("wb") as file, contextlib.suppress(OSError):  # both fill it
            while (extra_bytes := shutil.disk_usage(disk).free - room_bytes) > 0:
                os.posix_fallocate(file.fileno(), file.tell(), extra_bytes // 2 + 1)
                file.seek(0, os.SEEK_END)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        return Ended(process.returncode, errors.decode("utf-8", "replace"))

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(disk)], check=True)
    try:
        rooms = [matrix.random.randrange(8_000_000) for _ in range(matrix.count(20))]
        inside = Matrix(disk, None, quick=matrix.quick, seed=0)
        return inside.measure(
            conversion, ((partial(fill, room_bytes=room), filler.unlink) for room in rooms)
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()


def small_disk(matrix: Matrix) -> Figures:
    """Convert onto a disk that cannot hold the result: refused before the first byte."""
    conversion, _ = matrix.conversion("small")
    disk = matrix.place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], check=True)
    try:
        ended = run(conversion.command(disk / "model"))
        strays = [path.name for path in disk.rglob("*")]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()
    failures = {} if not strays else {"left over": 1}
    return {
        "stops": 1,
        "failures": failures,
        "first_failures": strays[:5],
        "redone_shards_at_most": 0,
        "exit_codes": {str(ended.code): 1},
        "message": ended.errors.strip(),
        "tracebacks": int("Traceback" in ended.errors),
    }


def scenarios(matrix: Matrix) -> dict[str, tuple[Callable[[], Figures], set[int]]]:
    """Return every scenario this machine can play, with the exit codes it may end with."""
    kill, term, interrupt = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
    # A signal that comes before our handlers are there ends the interpreter in its own way.
    early = {-term, -interrupt, 1}
    count = matrix.count
    every = partial(partial, at_every_call, matrix)
    played: dict[str, tuple[Callable[[], Figures], set[int]]] = {
        "kill_9": (partial(signals, matrix, "small", kill, count(200)), {0, -kill}),
        "sigterm": (partial(signals, matrix, "small", term, count(50)), {0, TERMINATED} | early),
        "sigint": (
            partial(signals, matrix, "small", interrupt, count(50)),
            {0, INTERRUPTED} | early,
        ),
        "killed_at_call": (every("kill"), {-kill}),
        "fails_at_call": (every("fail"), {0, RESOURCES}),
        # 0: what fails after the last rename is tidying up, and the result is whole.
        "fails_from_call": (every("fail-on"), {0, RESOURCES}),
        "short_write_at_call": (every("short"), {0}),
        "overwriting_killed_at_call": (every("kill", overwrite=True), {-kill}),
        "overwriting_fails_at_call": (every("fail", overwrite=True), {0, RESOURCES}),
        "file_size_limit": (partial(file_limit, matrix), {0, RESOURCES}),
    }
    if sys.platform == "linux" and os.geteuid() == 0:
        played["disk_full"] = (partial(full_disk, matrix), {0, RESOURCES})
        played["disk_too_small"] = (partial(small_disk, matrix), {RESOURCES})
    if not matrix.quick:
        played["kill_9_large"] = (partial(signals, matrix, "large", kill, 10), {0, -kill})
    return played


def main() -> int:
    """Play the scenarios and return 1 if any of them is not as it should be."""
    parser = argparse.ArgumentParser(description="stop conversions and continue them, as JSON")
    parser.add_argument("--only", help="scenarios, with commas between")
    parser.add_argument("--quick", action="store_true", help="a few stops each, nothing large")
    parser.add_argument("--folder", type=Path, help="where the work is done; a temporary folder")
    parser.add_argument("--large", type=Path, help="a large checkpoint to use, instead of one made")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        matrix = Matrix(Path(place), options.large, quick=options.quick, seed=options.seed)
        played = scenarios(matrix)
        for name in options.only.split(",") if options.only else played:
            play, codes = played[name]
            started = time.perf_counter()
            measured = play()
            seconds = round(time.perf_counter() - started)
            found = measured["exit_codes"]
            assert isinstance(found, dict)
            met = (
                not measured["failures"]
                and measured["redone_shards_at_most"] in (0, 1)
                and {int(code) for code in found} <= codes
                and (name == "sigint" or not measured["tracebacks"])
            )
            wrong += not met
            bar = {"failures": {}, "redone_shards_at_most": 1, "exit_codes": sorted(codes)}
            row = {"figure": f"interrupted.{name}", "bar": bar, "measured": measured, "met": met}
            print(json.dumps(row | {"seconds": seconds}), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
