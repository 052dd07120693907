"""What reading, checking and writing cost in CPU time, apart from all that is done between.

    python tests/bench/disk_cost.py --megabytes 4900

Makes a bf16 checkpoint of that size, reads it in blocks of rows, looks for NaN, and writes the
bytes of its 4-bit form, weight, scales and biases in turns. Prints JSON; removes what it made.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np

from glm_mlx.checkpoint import Checkpoint, RowReader, as_bytes, as_mlx, count_non_finite
from glm_mlx.checkpoint.layout import ShardPlan, TensorSpec, plan_shards
from glm_mlx.checkpoint.writer import ShardWriter

COLUMNS = 4096
ROWS = 1024  # 8 MB of bf16 a block
MATRIX_BLOCKS = 13  # one of 13,696 x 4,096, roughly
PARTS = {"weight": ("U32", COLUMNS // 8), "scales": ("BF16", COLUMNS // 64)}
PARTS["biases"] = PARTS["scales"]


class Clock:
    """CPU seconds of this process by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - start


def plan(matrices: int, *, packed: bool) -> list[ShardPlan]:
    rows = MATRIX_BLOCKS * ROWS
    parts = PARTS if packed else {"weight": ("BF16", COLUMNS)}
    groups = [
        [TensorSpec(f"{i}.{part}", dtype, (rows, width)) for part, (dtype, width) in parts.items()]
        for i in range(matrices)
    ]
    return plan_shards(groups, max_bytes=1 << 30, file_format="mlx")


def make_source(folder: Path, matrices: int) -> None:
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    block = as_bytes(mx.array(values).astype(mx.bfloat16))
    (shard,) = plan_shards(
        [[spec for shard in plan(matrices, packed=False) for spec in shard.specs]],
        max_bytes=1 << 60,
        file_format="mlx",
    )
    with ShardWriter(folder, shard) as writer:
        for name in shard.spans:
            for _ in range(MATRIX_BLOCKS):
                writer.write(name, block)
        writer.finish()


def measure(source: Path, destination: Path, matrices: int) -> dict[str, float]:
    clock = Clock()
    checkpoint = Checkpoint.open(source)
    outputs = {
        part: mx.random.randint(0, 1 << 16, (ROWS, width)).astype(
            mx.uint32 if dtype == "U32" else mx.bfloat16
        )
        for part, (dtype, width) in PARTS.items()
    }
    mx.eval(outputs)
    with RowReader(checkpoint) as reader:
        for shard in plan(matrices, packed=True):
            names = [name for name in shard.spans if name.endswith(".weight")]
            with ShardWriter(destination, shard) as writer:
                for name in names:
                    info = checkpoint.tensors[name]
                    for start in range(0, info.shape[0], ROWS):
                        with clock("read"):
                            block = reader.read(info, start, start + ROWS)
                        with clock("check"):
                            count_non_finite(block, info.dtype)
                        with clock("to mlx"):
                            mx.eval(as_mlx(block, info.dtype))
                        with clock("write and hash"):
                            for part, rows in outputs.items():
                                writer.write(name.replace("weight", part), as_bytes(rows))
                with clock("finish"):
                    writer.finish()
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000, help="of the bf16 checkpoint")
    parser.add_argument("--folder", type=Path, help="where to make it (the temporary folder)")
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    matrix_bytes = MATRIX_BLOCKS * ROWS * COLUMNS * 2
    matrices = max(1, round(arguments.megabytes * 1e6 / matrix_bytes))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        source, destination = Path(place, "source"), Path(place, "result")
        source.mkdir()
        destination.mkdir()
        make_source(source, matrices)
        seconds = measure(source, destination, matrices)
        written_bytes = sum(file.stat().st_size for file in destination.iterdir())
    unit = 1 << (10 if sys.platform == "linux" else 0)
    report = {
        "read_megabytes": round(matrices * matrix_bytes / 1e6),
        "written_megabytes": round(written_bytes / 1e6),
        "cpu_seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
        "total_cpu_seconds": round(sum(seconds.values()), 3),
        "peak_rss_megabytes": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        ),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
