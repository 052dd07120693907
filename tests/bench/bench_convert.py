"""Measure the converter against mlx-lm and against its own promises (`make bench-convert`).

    python tests/bench/bench_convert.py [--only rss,equal,full,refuse,kill] [--quick] [--folder P]

Prints one JSON line a figure: what was measured, the bar, whether it is met. Every conversion is a
process of its own with one thread, ours and mlx-lm's in turn; peak memory and CPU time are the
system's own account of it. A child is never counted below the memory of the process that starts
it, so this one imports the standard library only and holds no tensor. Needs 30 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import Figures, Finished, spawn

MAKER = Path(__file__).with_name("make_checkpoint.py")
KILLER = Path(__file__).with_name("kill_convert.py")
MB = 10**6
BLOCK_BYTES = 8 * MB
USAGE = 2
TOKENS = 2

FOUR_BITS = ("-q", "--q-bits", "4", "--q-group-size", "64")
# Where both programs have a name for the same thing, the tensors must be the same.
RECIPES: dict[str, Sequence[str]] = {
    **{
        f"affine {bits}": ("-q", "--q-bits", str(bits), "--q-group-size", "64")
        for bits in (2, 3, 4, 5, 6, 8)
    },
    **{mode: ("-q", "--q-mode", mode) for mode in ("mxfp4", "mxfp8", "nvfp4")},
    "mixed_4_6": ("-q", "--quant-predicate", "mixed_4_6", "--q-group-size", "64"),
    "float16": ("--dtype", "float16"),
}


@dataclass(frozen=True)
class Size:
    """How large the checkpoints are: layers, and what differs from the 9B."""

    first_layers: int
    twice_layers: int
    full_layers: int
    vocab_size: int


FULL = Size(6, 18, 40, 151552)
QUICK = Size(2, 4, 2, 16384)
# Matrices of several blocks; in some modes mlx-lm needs 12 GB for 0.4 GB of the 9B's.
NARROW = {
    "hidden_size": 1024,
    "num_layers": 4,
    "num_heads": 8,
    "intermediate_size": 3392,
    "vocab_size": 16384,
}


@dataclass(frozen=True)
class Bench:
    """Where the work is done and how large it is."""

    place: Path
    size: Size
    rounds: int
    quick: bool

    def make(self, layout: str, **shape: int) -> Path:
        """Write a checkpoint of the 9B's shape but for what is given."""
        folder = self.place / "source"
        spawn(MAKER, folder, "--layout", layout, "--shape", json.dumps(shape))
        return folder


def ours(source: Path, target: Path, options: Sequence[str]) -> Finished:
    """Convert with this package."""
    return spawn("-m", "glm_mlx", "convert", source, target, *options)


def theirs(source: Path, target: Path, options: Sequence[str]) -> Finished:
    """Convert with mlx-lm."""
    words = ("convert", "--hf-path", source, "--mlx-path", target)
    return spawn("-m", "mlx_lm", *words, *options)


def warm(folder: Path) -> None:
    """Read all files once: what the disk costs is no figure of either program."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(BLOCK_BYTES):
                pass


def row(figure: str, bar: object, measured: object, met: bool) -> Figures:
    """Return one line of the result."""
    return {"figure": figure, "bar": bar, "measured": measured, "met": met}


def read_headers(folder: Path) -> dict[str, tuple[Path, str, list[int], int, int]]:
    """Return file, dtype, shape, start and stop of every tensor of a folder."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = (path, entry["dtype"], entry["shape"], start, stop)
    return tensors


def compare_tensors(ours: Path, theirs: Path) -> Figures:
    """Compare names, dtypes, shapes and bytes of two folders, a block at a time."""
    left, right = read_headers(ours), read_headers(theirs)
    different = sorted(left.keys() ^ right.keys())
    for name in left.keys() & right.keys():
        (path, *kind, start, stop), (other, *other_kind, other_start, other_stop) = (
            left[name],
            right[name],
        )
        equal = kind == other_kind and stop - start == other_stop - other_start
        with path.open("rb") as a, other.open("rb") as b:
            a.seek(start)
            b.seek(other_start)
            while equal and (rest := stop - a.tell()):
                step = min(rest, BLOCK_BYTES)
                equal = a.read(step) == b.read(step)
        if not equal:
            different.append(name)
    return {"tensors": len(right), "different": len(different), "first_different": different[:5]}


def equality(what: str, ours: Path, theirs: Path) -> Figures:
    """Return the row of one comparison."""
    found = compare_tensors(ours, theirs)
    bar = {"different": 0}
    return row(
        f"equal_to_mlx_lm.{what}", bar, found, found["different"] == 0 and found["tensors"] != 0
    )


def measure_memory_and_time(bench: Bench) -> Iterator[Figures]:
    """4.9 GB of bf16 to 4 bits, ours and mlx-lm's in turn; then twice as much, ours alone."""
    source = bench.make(
        "glm4", num_layers=bench.size.first_layers, vocab_size=bench.size.vocab_size
    )
    rounds: dict[str, list[Finished]] = {"ours": [], "mlx_lm": []}
    for number in range(bench.rounds):
        for name, convert in (("mlx_lm", theirs), ("ours", ours)):
            warm(source)
            rounds[name].append(convert(source, bench.place / name, FOUR_BITS))
        if number == 0:
            yield equality("4.9 GB, affine 4", bench.place / "ours", bench.place / "mlx_lm")
        for name in rounds:
            shutil.rmtree(bench.place / name)
    shutil.rmtree(source)
    memory = {name: [turn.peak_rss_bytes / MB for turn in turns] for name, turns in rounds.items()}
    seconds = {name: [turn.cpu_seconds for turn in turns] for name, turns in rounds.items()}
    first_mb = statistics.median(memory["ours"])
    yield row("peak_rss_mb", {"ours": 150}, memory, first_mb <= 150)
    ratio = statistics.median(
        a / b for a, b in zip(seconds["ours"], seconds["mlx_lm"], strict=True)
    )
    yield row("cpu_time", {"ratio": 0.6}, {"ratio": round(ratio, 3)} | seconds, ratio <= 0.6)
    source = bench.make(
        "glm4", num_layers=bench.size.twice_layers, vocab_size=bench.size.vocab_size
    )
    twice = ours(source, bench.place / "ours", FOUR_BITS)
    shutil.rmtree(source)
    shutil.rmtree(bench.place / "ours")
    twice_mb = twice.peak_rss_bytes / MB
    growth = twice_mb / first_mb - 1
    found = {"growth": round(growth, 3), "ours": twice_mb, "cpu_seconds": twice.cpu_seconds}
    yield row("peak_rss_mb_of_twice_the_size", {"growth": 0.1}, found, abs(growth) <= 0.1)


def measure_equality(bench: Bench) -> Iterator[Figures]:
    """Every recipe that both programs know, on a narrow model."""
    source = bench.make("glm4", **NARROW)
    for name, options in RECIPES.items():
        ours(source, bench.place / "ours", options)
        theirs(source, bench.place / "mlx_lm", options)
        yield equality(name, bench.place / "ours", bench.place / "mlx_lm")
        shutil.rmtree(bench.place / "ours")
        shutil.rmtree(bench.place / "mlx_lm")
    shutil.rmtree(source)


def measure_full_size(bench: Bench) -> Iterator[Figures]:
    """The whole 9B in the layout mlx-lm refuses: convert, verify, load, generate."""
    source = bench.make(
        "chatglm", num_layers=bench.size.full_layers, vocab_size=bench.size.vocab_size
    )
    target = bench.place / "converted"
    size_bytes = sum(path.stat().st_size for path in source.iterdir())
    converted = ours(source, target, FOUR_BITS)
    peak_mb = converted.peak_rss_bytes / MB
    found: Figures = {
        "source_bytes": size_bytes,
        "peak_rss_mb": peak_mb,
        "cpu_seconds": converted.cpu_seconds,
    }
    verified = spawn("-m", "glm_mlx", "verify", target, "--source", source, "--full")
    found |= {
        "verify_cpu_seconds": verified.cpu_seconds,
        "verify_peak_rss_mb": verified.peak_rss_bytes / MB,
    }
    shutil.rmtree(source)
    stops = json.loads((target / "config.json").read_bytes())["eos_token_id"]
    never = [word for stop in stops for word in ("--logit-bias", f"{stop}=-1000000")]
    words = ("--model", target, "-p", "Hi", "-m", TOKENS, "--temp", "0", "--json", *never)
    said = spawn("-m", "glm_mlx", "generate", *words)
    tokens = json.loads(said.output)["usage"]["completion_tokens"]
    found |= {"generated_tokens": tokens, "generate_cpu_seconds": said.cpu_seconds}
    shutil.rmtree(target)
    bar = {"peak_rss_mb": 200, "generated_tokens": TOKENS}
    yield row("full_size_9b_chatglm", bar, found, peak_mb <= 200 and tokens == TOKENS)


def measure_refusal(bench: Bench) -> Iterator[Figures]:
    """A group size that MLX does not have is an error and not a model of 16 bits a weight."""
    source = bench.make("glm4", **NARROW)
    place = bench.place / "refused"
    place.mkdir()
    command = ["convert", str(source), str(place / "model"), "-q", "--q-group-size", "48"]
    done = subprocess.run(
        [sys.executable, "-m", "glm_mlx", *command], capture_output=True, text=True, check=False
    )
    lines = done.stderr.splitlines()
    written = sorted(path.name for path in place.rglob("*"))
    shutil.rmtree(source)
    found = {"exit_code": done.returncode, "stderr": lines, "written": written}
    met = done.returncode == USAGE and len(lines) == 1 and not written
    yield row("q_group_size_48", {"exit_code": USAGE, "lines": 1, "written": 0}, found, met)


def measure_interruptions(bench: Bench) -> Iterator[Figures]:
    """Everything `kill_convert.py` plays."""
    command = [sys.executable, str(KILLER), "--folder", str(bench.place)]
    with subprocess.Popen(
        command + ["--quick"] * bench.quick, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{KILLER.name} ended with {process.returncode}")


PARTS: dict[str, Callable[[Bench], Iterator[Figures]]] = {
    "refuse": measure_refusal,
    "equal": measure_equality,
    "rss": measure_memory_and_time,
    "kill": measure_interruptions,
    "full": measure_full_size,
}


def main() -> int:
    """Measure and return 1 if any bar is missed."""
    parser = argparse.ArgumentParser(description="figures of the converter, as JSON lines")
    parser.add_argument("--only", help=f"of {', '.join(PARTS)}, with commas between")
    parser.add_argument("--quick", action="store_true", help="small models, for a first look")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the work is done; a temporary folder")
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        size = QUICK if options.quick else FULL
        bench = Bench(Path(place), size, options.rounds, options.quick)
        for part in options.only.split(",") if options.only else PARTS:
            for figures in PARTS[part](bench):
                missed += not figures["met"]
                print(json.dumps(figures), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
