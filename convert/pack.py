"""A block of rows of one piece: read, checked, unpacked, cast, transformed, packed.

Knows one block at a time, so that memory does not grow with the model. Rows are independent of
each other in every format used here: a block packs to the same bits as the whole matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
# The range of a group must be finite in fp32; nvfp4 has scales of 448 at most for values of 6.
_LARGEST_IN_MODE = {"affine": 1.5e38, "mxfp4": 1.5e38, "mxfp8": 1.5e38, "nvfp4": 2688.0}


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
        step = max(1, (block_bytes or _block_bytes(piece)) // segment.row_bytes)
        for start in range(segment.start, segment.stop, step):
            stop = min(start + step, segment.stop)
            yield Block(segment, start, stop, first)
            first += stop - start


def _block_bytes(piece: Piece) -> int:
    """Less for the floating-point modes, for which MLX's CPU backend keeps dozens of copies."""
    return BLOCK_BYTES if piece.spec is None or piece.spec.mode == "affine" else BLOCK_BYTES // 16


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
    floats = _dequantize(parts, spec, None if spec.mode == "affine" else mx.float32)
    return floats, bad + int(_number(mx.sum(~mx.isfinite(floats))))


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
    if exact.dtype == DTYPES[piece.dtype]:
        if piece.spec is None:
            mx.eval(exact)
            return Packed({piece.name: exact}, 0, 0.0, 0.0)
        if piece.spec.mode == "affine":
            # A group too wide for its format shows in its scale: no need to look at every value.
            packed = _pack_and_measure(exact, exact, piece, sample)
            if packed is not None:
                return packed
    cast, beyond = _cast(exact, piece)
    packed = _pack_and_measure(exact, cast, piece, sample)
    assert packed is not None, f"{piece.name}: {piece.spec} cannot hold what was cut to its range"
    return replace(packed, beyond=beyond)


def _pack_and_measure(
    exact: mx.array, cast: mx.array, piece: Piece, sample: slice
) -> Packed | None:
    """Pack `cast` and compare it with `exact`; None if a scale is infinite."""
    parts = pack(cast, piece)
    before = exact[sample].astype(mx.float32)
    after = unpack({name: part[sample] for name, part in parts.items()}, piece)
    unit = mx.maximum(mx.max(mx.abs(before)), 1e-30)  # so that no square leaves the range of fp32
    error = mx.sum(mx.square((before - after) / unit))
    norm = mx.sum(mx.square(before / unit))
    scales = [part for part in parts.values() if mx.issubdtype(part.dtype, mx.floating)]
    finite = mx.stack([mx.isfinite(part).all() for part in scales] or [mx.array(True)]).all()
    mx.eval(error, norm, unit, finite, *parts.values())  # at once: each is a change of thread
    if not finite.item():
        return None
    square = _number(unit) ** 2
    return Packed(parts, 0, _number(error) * square, _number(norm) * square)


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


def _cast(floats: mx.array, piece: Piece) -> tuple[mx.array, int]:
    """Return the floats in the piece's dtype, and how many were cut to what its format can hold."""
    largest = _LARGEST_IN_MODE[piece.spec.mode] if piece.spec else math.inf
    largest = min(largest, _LARGEST.get(piece.dtype, math.inf))
    floats = floats.astype(mx.float32)  # in which every limit is exact
    beyond = int(_number(mx.sum(mx.abs(floats) > largest)))
    if beyond:
        floats = mx.clip(floats, -largest, largest)
    return floats.astype(DTYPES[piece.dtype]), beyond


def _number(scalar: mx.array) -> float:
    value = scalar.item()
    assert isinstance(value, int | float)
    return value
