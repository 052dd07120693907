"""A block of rows of one piece: read, checked, unpacked, cast, transformed, packed.

Knows one block at a time, so that memory does not grow with the model. Rows are independent of
each other in every format used here: a block packs to the same bits as the whole matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from glm_mlx.checkpoint import RowReader, as_mlx, count_non_finite
from glm_mlx.checkpoint.header import DTYPES
from glm_mlx.config import QuantSpec
from glm_mlx.convert.plan import Piece, Segment

if TYPE_CHECKING:
    import numpy as np

BLOCK_BYTES = 8 << 20
_LARGEST = {"F16": 65504.0, "BF16": 3.3895313892515355e38}


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` of a source segment; `first` is the row of the piece they begin at."""

    segment: Segment
    start: int
    stop: int
    first: int

    @property
    def size_bytes(self) -> int:
        return self.segment.row_bytes * (self.stop - self.start)


@dataclass(frozen=True)
class Transform:
    """What learning does to a tensor W before it is packed: W * rows * columns.

    Attributes:
        rows: (rows,) fp32 factors, or None for ones.
        columns: (columns,) fp32 factors, or None for ones.
    """

    rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    def apply(self, block: mx.array, first: int) -> mx.array:
        """Return the transformed rows, of which the first is row `first` of the tensor, in fp32."""
        last = first + block.shape[0]
        block = block.astype(mx.float32)
        if self.rows is not None:
            rows = mx.array(self.rows[first:last])
            block = block * (rows if block.ndim == 1 else rows[:, None])
        if self.columns is not None:
            block = block * mx.array(self.columns)
        return block


@dataclass(frozen=True)
class Packed:
    """What a block became.

    Attributes:
        parts: output tensor name -> its rows, evaluated.
        beyond: how many finite values the result's dtype cannot hold.
        error: sum of squared differences between the floats before and after, over the sample.
        norm: sum of squares of the floats before, over the sample.
    """

    parts: Mapping[str, mx.array]
    beyond: int
    error: float
    norm: float


def blocks_of(piece: Piece, *, block_bytes: int | None = None) -> Iterator[Block]:
    """Yield the piece's rows in order, none of the blocks crossing a segment."""
    first = 0
    for segment in piece.segments:
        step = max(1, (block_bytes or BLOCK_BYTES) // segment.row_bytes)
        for start in range(segment.start, segment.stop, step):
            stop = min(start + step, segment.stop)
            yield Block(segment, start, stop, first)
            first += stop - start


def read_block(reader: RowReader, block: Block) -> tuple[mx.array, int]:
    """Return the block's floats in the dtype the source has them in, and how many are not finite.

    Rows of a packed source are unpacked, in the dtype of its scales or, where those are codes, in
    fp32.
    """
    raw = [reader.read(info, block.start, block.stop) for info in block.segment.tensors]
    infos = block.segment.tensors
    bad = sum(count_non_finite(part, info.dtype) for part, info in zip(raw, infos, strict=True))
    parts = [as_mlx(part, info.dtype) for part, info in zip(raw, infos, strict=True)]
    spec = block.segment.packed
    if spec is None:
        return parts[0], bad
    return _dequantize(parts, spec, None if spec.mode == "affine" else mx.float32), bad


def pack_block(
    floats: mx.array, piece: Piece, first: int, transform: Transform | None, *, sample: slice
) -> Packed:
    """Return rows of a piece as the result stores them.

    Args:
        floats: as `read_block` returns them.
        first: the row of the piece they begin at.
        transform: what was learned for the piece, if anything.
        sample: the rows of the block whose error is measured.
    """
    exact = floats if transform is None else transform.apply(floats, first)
    cast, beyond = _cast(exact, piece.dtype)
    parts = pack(cast, piece)
    if piece.spec is None and cast is exact:
        mx.eval(*parts.values())
        return Packed(parts, beyond, 0.0, 0.0)
    before = exact[sample].astype(mx.float32)
    after = unpack({name: part[sample] for name, part in parts.items()}, piece)
    sums = mx.stack([mx.sum(mx.square(before - after)), mx.sum(mx.square(before))])
    mx.eval(sums, *parts.values())  # at once: each evaluation hands over to a thread of MLX
    return Packed(parts, beyond, _number(sums[0]), _number(sums[1]))


def pack(floats: mx.array, piece: Piece) -> dict[str, mx.array]:
    """Return output tensor name -> rows, not yet evaluated."""
    names = [output.name for output in piece.outputs]
    if piece.spec is None:
        return {names[0]: floats}
    spec = piece.spec
    arrays = mx.quantize(floats, spec.group_size, spec.bits, spec.mode)
    return dict(zip(names, arrays, strict=True))


def unpack(parts: Mapping[str, mx.array], piece: Piece) -> mx.array:
    """Return the floats that the result's rows stand for, in fp32."""
    arrays = list(parts.values())
    if piece.spec is None:
        return arrays[0].astype(mx.float32)
    spec = piece.spec
    if spec.mode == "affine":
        arrays[1:] = [array.astype(mx.float32) for array in arrays[1:]]
    return _dequantize(arrays, spec, mx.float32)


def _dequantize(parts: Sequence[mx.array], spec: QuantSpec, dtype: mx.Dtype | None) -> mx.array:
    codes, scales, *biases = parts
    return mx.dequantize(
        codes,
        scales,
        biases[0] if biases else None,
        spec.group_size,
        spec.bits,
        spec.mode,
        dtype=dtype,
    )


def _cast(floats: mx.array, dtype: str) -> tuple[mx.array, int]:
    """Return the floats in `dtype`, saturated, and how many lay beyond its range."""
    if floats.dtype == DTYPES[dtype]:
        return floats, 0
    largest = _LARGEST.get(dtype)
    if largest is None:
        return floats.astype(DTYPES[dtype]), 0
    beyond = int(_number(mx.sum(mx.abs(floats) > largest)))
    if beyond:
        floats = mx.clip(floats, -largest, largest)
    return floats.astype(DTYPES[dtype]), beyond


def _number(scalar: mx.array) -> float:
    value = scalar.item()
    assert isinstance(value, int | float)
    return value
