"""Which rows of which source tensors make each tensor of the result, in any pair of layouts.

Works on names and shapes; reads and writes nothing. That the source fits its config was checked
by the loader's `build` before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from glm_mlx.checkpoint import Checkpoint, TensorInfo
from glm_mlx.checkpoint.layout import TensorSpec
from glm_mlx.config import ModelConfig, Quantization, QuantSpec
from glm_mlx.model.names import source_of, targets_of


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `stop` of a source tensor.

    Attributes:
        weight: the tensor itself, or its packed codes.
        packed: how it is packed, with its scales and, in affine mode, biases; None for floats.
    """

    weight: TensorInfo
    start: int
    stop: int
    packed: QuantSpec | None = None
    scales: TensorInfo | None = None
    biases: TensorInfo | None = None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The one to three tensors to read."""
        return tuple(info for info in (self.weight, self.scales, self.biases) if info)

    @property
    def row_bytes(self) -> int:
        """What a row takes in the source."""
        return sum(info.size_bytes // info.shape[0] for info in self.tensors)

    @property
    def size_bytes(self) -> int:
        return self.row_bytes * (self.stop - self.start)


@dataclass(frozen=True)
class Piece:
    """One tensor of the result before it is packed, and the source rows that it is made of.

    Attributes:
        name: its name in the result, such as `model.layers.0.self_attn.q_proj.weight`.
        shape: of the floats, whatever the result packs them into.
        dtype: of the result's floats: BF16, F16 or F32.
        segments: in the order of the rows.
        spec: how the result packs it, None to leave floats.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    segments: tuple[Segment, ...]
    spec: QuantSpec | None = None

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def size_bytes(self) -> int:
        """What is read for it."""
        return sum(segment.size_bytes for segment in self.segments)

    @property
    def is_matrix(self) -> bool:
        """Whether it may be packed: every matrix of a GLM is an embedding or a projection."""
        return len(self.shape) == 2 and self.name.endswith(".weight")

    @property
    def stored(self) -> str:
        """How the result stores it: bf16, f16, f32, or mode, bits and group size."""
        return str(self.spec) if self.spec else self.dtype.lower()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors it becomes: itself, or its codes, scales and, in affine mode, biases."""
        if self.spec is None:
            return (TensorSpec(self.name, self.dtype, self.shape),)
        rows, columns = self.shape
        codes = (rows, columns * self.spec.bits // 32)
        groups = (rows, columns // self.spec.group_size)
        parts = [TensorSpec(self.name, "U32", codes)]
        if self.spec.mode == "affine":
            parts.append(TensorSpec(f"{self.module}.scales", self.dtype, groups))
            parts.append(TensorSpec(f"{self.module}.biases", self.dtype, groups))
        else:
            parts.append(TensorSpec(f"{self.module}.scales", "U8", groups))
        return tuple(parts)


def plan_pieces(
    checkpoint: Checkpoint, config: ModelConfig, *, layout: str, dtype: str | None
) -> tuple[list[Piece], list[str]]:
    """Return the unquantized pieces in the source's order, and the source tensors left out.

    Left out are rotary frequencies, which the config determines, and the head of a model whose
    head is its embedding.

    Args:
        layout: mlx and hf name tensors alike; chatglm joins q, k and v.
        dtype: BF16, F16 or F32 for all floats, None for each tensor's own.
    """
    segments: dict[str, list[tuple[str, Segment]]] = {}
    skipped = []
    for info in checkpoint.tensors.values():
        targets = targets_of(info.name, config)
        if not targets:
            skipped.append(info.name)
        if _is_companion(info, checkpoint, config):
            continue
        for target in targets:
            start, stop, _ = (target.rows or slice(None)).indices(info.shape[0])
            name = source_of(target.name, "chatglm") if layout == "chatglm" else target.name
            segment = _segment(info, start, stop, target.name, checkpoint, config)
            segments.setdefault(name, []).append((target.name, segment))
    default = _float_dtype(checkpoint)
    pieces = []
    for name, parts in segments.items():
        parts.sort(key=lambda part: _qkv_order(part[0]))
        ordered = tuple(segment for _, segment in parts)
        shape = (sum(s.stop - s.start for s in ordered), *_row_shape(ordered[0]))
        pieces.append(Piece(name, shape, dtype or _result_dtype(ordered, default), ordered))
    return pieces, skipped


def quantized(pieces: Iterable[Piece], quantization: Quantization | None) -> list[Piece]:
    """Return the pieces with the spec that `quantization` has for each matrix."""
    if quantization is None:
        return list(pieces)
    return [
        replace(piece, spec=quantization.spec_for(piece.module)) if piece.is_matrix else piece
        for piece in pieces
    ]


def matrices(pieces: Iterable[Piece]) -> dict[str, tuple[int, int]]:
    """Return module path -> (rows, columns) of what may be quantized."""
    return {piece.module: piece.shape[:2] for piece in pieces if piece.is_matrix}  # type: ignore[misc]


def count_parameters(pieces: Iterable[Piece]) -> int:
    return sum(math.prod(piece.shape) for piece in pieces)


def _is_companion(info: TensorInfo, checkpoint: Checkpoint, config: ModelConfig) -> bool:
    """Whether a tensor holds the scales or biases of another one."""
    module, _, kind = info.name.rpartition(".")
    return (
        config.quantization is not None
        and kind in ("scales", "biases")
        and f"{module}.scales" in checkpoint.tensors
    )


def _segment(
    info: TensorInfo,
    start: int,
    stop: int,
    target: str,
    checkpoint: Checkpoint,
    config: ModelConfig,
) -> Segment:
    module, _, kind = info.name.rpartition(".")
    scales = checkpoint.tensors.get(f"{module}.scales")
    if config.quantization is None or kind != "weight" or scales is None:
        return Segment(info, start, stop)
    packed = config.quantization.spec_for(target.rpartition(".")[0])
    assert packed is not None, "the loader refuses scales of what is not quantized"
    biases = checkpoint.tensors.get(f"{module}.biases")
    return Segment(info, start, stop, packed, scales, biases)


def _row_shape(segment: Segment) -> tuple[int, ...]:
    if segment.packed is None:
        return segment.weight.shape[1:]
    assert segment.scales is not None
    return (segment.scales.shape[1] * segment.packed.group_size,)


def _float_dtype(checkpoint: Checkpoint) -> str:
    """The dtype of the norms, for what is packed without a float scale."""
    return next(
        info.dtype for name, info in checkpoint.tensors.items() if name.endswith("norm.weight")
    )


def _result_dtype(segments: Sequence[Segment], default: str) -> str:
    """The dtype the source's floats have; of several, the one that holds them all."""
    found = set()
    for segment in segments:
        info = segment.weight if segment.packed is None else segment.scales
        assert info is not None
        found.add(default if info.dtype == "U8" else info.dtype)
    return found.pop() if len(found) == 1 else "F32"


def _qkv_order(target: str) -> int:
    """The place of a target's rows in chatglm's joined q/k/v; 0 for everything else."""
    part = target.rpartition(".self_attn.")[2]
    return {"q": 0, "k": 1, "v": 2}.get(part.partition("_proj.")[0], 0)
