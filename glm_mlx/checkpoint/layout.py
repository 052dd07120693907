"""Where every tensor of a checkpoint to be written lies, decided before the first byte of data.

Knows names, shapes and offsets; touches no file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glm_mlx.checkpoint.folder import SINGLE
from glm_mlx.checkpoint.header import DTYPES

_ALIGNMENT_BYTES = 8  # of the data, which the format asks for: the header ends in spaces


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: its name, the format's spelling of its dtype, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].size


@dataclass(frozen=True)
class ShardPlan:
    """One file to be written.

    Attributes:
        file_name: its final name.
        header: its first bytes, up to the first tensor.
        specs: its tensors in the order of their bytes.
        spans: tensor name -> offsets in the file of its first byte and after its last, in the same
            order; the first begins where the header ends, and there is no gap.
    """

    file_name: str
    header: bytes
    specs: tuple[TensorSpec, ...]
    spans: Mapping[str, tuple[int, int]]

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(spec.size_bytes for spec in self.specs)


def plan_shards(
    groups: Sequence[Sequence[TensorSpec]], *, max_bytes: int, file_format: str
) -> list[ShardPlan]:
    """Return the files that hold all tensors, in order, each as full as `max_bytes` allows.

    Args:
        groups: tensors that must share a file, such as weight, scales and biases of one matrix.
        max_bytes: of tensor data in a file; a group that is larger has a file of its own.
        file_format: what the header names as the writer, "mlx" or "pt".
    """
    shards: list[list[TensorSpec]] = []
    room_bytes = 0
    for group in groups:
        size_bytes = sum(spec.size_bytes for spec in group)
        if not shards or size_bytes > room_bytes:
            shards.append([])
            room_bytes = max_bytes
        shards[-1] += group
        room_bytes -= size_bytes
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    return [
        _plan_shard(name, specs, file_format) for name, specs in zip(names, shards, strict=True)
    ]


def _plan_shard(file_name: str, specs: Sequence[TensorSpec], file_format: str) -> ShardPlan:
    # The widest values first, so that each tensor starts at a multiple of its value's size, which
    # readers that map the file need.
    ordered = sorted(specs, key=lambda spec: -DTYPES[spec.dtype].size)
    header: dict[str, object] = {"__metadata__": {"format": file_format}}
    offsets: dict[str, tuple[int, int]] = {}
    end = 0
    for spec in ordered:
        start, end = end, end + spec.size_bytes
        offsets[spec.name] = (start, end)
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": spec.shape,
            "data_offsets": (start, end),
        }
    assert len(offsets) == len(specs), "a name is given twice"
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    raw = len(text).to_bytes(8, "little") + text
    spans = {name: (len(raw) + start, len(raw) + stop) for name, (start, stop) in offsets.items()}
    return ShardPlan(file_name, raw, tuple(ordered), spans)


def index_json(shards: Sequence[ShardPlan], *, parameters: int) -> bytes:
    """Return `model.safetensors.index.json` as mlx-lm writes it.

    Args:
        parameters: of the model, which packed tensors no longer tell.
    """
    total_size = sum(spec.size_bytes for shard in shards for spec in shard.specs)
    weight_map = {name: shard.file_name for shard in shards for name in shard.spans}
    index = {
        "metadata": {"total_size": total_size, "total_parameters": parameters},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return json.dumps(index, indent=4).encode()
