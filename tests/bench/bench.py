"""Compare this package with mlx-lm on equal work and print the figures as JSON (`make bench`).

Every measurement is a fresh process, ours and theirs in turn; a ratio is ours / theirs of one
round, reported as median and range over the rounds. Process CPU time is what counts: on a shared
machine it is steady to a few percent where wall clock is not. On a GPU it counts the host's work
only, and the wall-clock ratios beside it are the ones to read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

CHILD = Path(__file__).with_name("bench_child.py")
ENGINES = ("ours", "mlx_lm")
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS"), "1"
)
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024

Figures = dict[str, object]


@dataclass(frozen=True)
class Size:
    """What one run of the bench costs: the model shapes and how much they are asked."""

    wide: dict[str, int]  # arithmetic dominates: prefill and decode
    deep: dict[str, int]  # the host dominates: graph building
    prompt_tokens: int
    tokens: int


HEADS = {"num_heads": 16, "num_kv_heads": 2, "head_dim": 128}
FULL = Size(
    wide=HEADS
    | {"hidden_size": 1024, "num_layers": 8, "intermediate_size": 3392, "vocab_size": 32768},
    deep={"hidden_size": 64, "num_layers": 40, "intermediate_size": 128},
    prompt_tokens=128,
    tokens=33,
)
QUICK = Size(
    wide=HEADS
    | {"hidden_size": 256, "num_layers": 4, "intermediate_size": 512, "vocab_size": 4096},
    deep=FULL.deep,
    prompt_tokens=64,
    tokens=17,
)


@dataclass(frozen=True)
class Finished:
    """What a child process printed and what it cost."""

    output: str
    cpu_seconds: float
    peak_rss_bytes: int


def spawn(*arguments: object) -> Finished:
    """Run this Python with the arguments, one thread for the math libraries and no network."""
    command = [sys.executable, *map(str, arguments)]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, env=os.environ | ONE_THREAD | offline
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{command} ended with {process.returncode}")
        output.seek(0)
        return Finished(
            output.read(), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * RSS_UNIT_BYTES
        )


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Figures:
    """Return the ratio ours / theirs round by round, and both medians."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "ours": statistics.median(ours),
        "mlx_lm": statistics.median(theirs),
    }


def alternate(rounds: int, *runs: Callable[[], Finished]) -> list[list[Finished]]:
    """Run each in turn, round after round; one more round before, uncounted, fills the caches."""
    for run in runs:
        run()
    turns = [[run() for run in runs] for _ in range(rounds)]
    return [list(column) for column in zip(*turns, strict=True)]


def measure(rounds: int, what: str, folder: Path, *options: object) -> Figures:
    """Compare the engines on everything `bench_child.py` reports, and on peak memory."""

    def run(engine: str) -> Callable[[], Finished]:
        return lambda: spawn(CHILD, what, folder, "--engine", engine, *options)

    ours, theirs = alternate(rounds, *(run(engine) for engine in ENGINES))
    mine, other = ([json.loads(turn.output) for turn in column] for column in (ours, theirs))
    figures: Figures = {
        key: compare([turn[key] for turn in mine], [turn[key] for turn in other])
        for key in mine[0]
        if key.endswith("_seconds")
    }
    figures["peak_rss_bytes"] = compare(
        [turn.peak_rss_bytes for turn in ours], [turn.peak_rss_bytes for turn in theirs]
    )
    figures["device"] = mine[0]["device"]
    if "token_ids" in mine[0]:
        figures["same_tokens"] = all(
            a["token_ids"] == b["token_ids"] for a, b in zip(mine, other, strict=True)
        )
    return figures


def measure_starts(rounds: int) -> Figures:
    """Compare whole processes by CPU time: help, import, first token of the embedded model."""
    nano = files("glm_mlx.nano")
    prompt = ["--prompt", "Hello", "--max-tokens", "1"]
    commands: dict[str, list[Sequence[object]]] = {
        "help": [["-m", "glm_mlx", "--help"], ["-c", "import mlx_lm"]],
        "help_against_help": [["-m", "glm_mlx", "--help"], ["-m", "mlx_lm", "generate", "--help"]],
        "import": [["-c", "import glm_mlx"], ["-c", "import mlx_lm"]],
        "first_token_on_nano": [
            ["-m", "glm_mlx", "generate", *prompt],
            ["-m", "mlx_lm", "generate", "--model", nano, *prompt],
        ],
    }
    figures: Figures = {}
    for name, pair in commands.items():
        ours, theirs = alternate(rounds, *((lambda line=line: spawn(*line)) for line in pair))
        figures[name] = {
            "cpu_seconds": compare(
                [turn.cpu_seconds for turn in ours], [turn.cpu_seconds for turn in theirs]
            ),
            "peak_rss_bytes": compare(
                [turn.peak_rss_bytes for turn in ours], [turn.peak_rss_bytes for turn in theirs]
            ),
        }
    bare = [spawn("-c", "pass").cpu_seconds for _ in range(rounds)]
    return figures | {"python_alone_cpu_seconds": statistics.median(bare)}


BARS = {
    "start.help.cpu_seconds": 0.25,
    "start.import.cpu_seconds": 0.25,
    "4bit.prefill_cpu_seconds": 1.05,
    "4bit.decode_cpu_seconds": 1.05,
    "fp32.prefill_cpu_seconds": 1.05,
    "fp32.decode_cpu_seconds": 1.05,
}


def judge(figures: Figures) -> Figures:
    """Put each ratio that has a bar beside it."""
    verdicts: Figures = {}
    for path, bar in BARS.items():
        value: object = figures
        for key in (*path.split("."), "ratio"):
            assert isinstance(value, dict)
            value = value[key]
        assert isinstance(value, float)
        verdicts[path] = {"ratio": value, "bar": bar, "met": value <= bar}
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small model, for a first look")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    figures: Figures = {
        "machine": {
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("glm-mlx", "mlx", "mlx-lm")},
        },
        "rounds": options.rounds,
        "size": vars(size),
    }
    with tempfile.TemporaryDirectory() as place:
        for name, bits in (("4bit", 4), ("fp32", 32)):
            folder = Path(place) / name
            spawn(CHILD, "write", folder, "--bits", bits, "--shape", json.dumps(size.wide))
            lengths = ["--prompt-tokens", size.prompt_tokens, "--tokens", size.tokens]
            figures[name] = measure(options.rounds, "speed", folder, *lengths)
        folder = Path(place) / "deep"
        spawn(CHILD, "write", folder, "--bits", 4, "--shape", json.dumps(size.deep))
        figures["graph"] = measure(options.rounds, "graph", folder, "--tokens", 64)
    figures["start"] = measure_starts(options.rounds)
    figures["bars"] = judge(figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
