"""One block of rows at a time gives what the whole tensor would."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from glm_mlx.checkpoint import TensorInfo
from glm_mlx.config import QuantSpec
from glm_mlx.convert.pack import Transform, blocks_of, pack_block, unpack
from glm_mlx.convert.plan import Piece, Segment

RANDOM = np.random.default_rng(0)


def piece_of(
    shape: tuple[int, ...], *, dtype: str = "F32", spec: QuantSpec | None = None, parts: int = 1
) -> Piece:
    """A piece whose rows come from `parts` source tensors of equal height."""
    rows = shape[0] // parts
    size_bytes = 4 * rows * int(np.prod(shape[1:]))
    infos = [
        TensorInfo(f"s{i}", "F32", (rows, *shape[1:]), Path("s"), 0, size_bytes)
        for i in range(parts)
    ]
    return Piece("m.weight", shape, dtype, tuple(Segment(i, 0, rows) for i in infos), spec)


@pytest.mark.parametrize("block_bytes", [1, 100, 1000, 1 << 20])
def test_blocks_cover_the_rows_in_order_and_cross_no_segment(block_bytes: int) -> None:
    piece = piece_of((30, 8), parts=3)
    blocks = list(blocks_of(piece, block_bytes=block_bytes))
    rows = [(b.segment.weight.name, row) for b in blocks for row in range(b.start, b.stop)]
    assert rows == [(f"s{i}", row) for i in range(3) for row in range(10)]
    assert [b.first for b in blocks] == list(np.cumsum([0] + [b.stop - b.start for b in blocks]))[
        :-1
    ]
    assert sum(b.size_bytes for b in blocks) == piece.size_bytes
    assert all(b.size_bytes <= max(block_bytes, 32) for b in blocks)


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4", "mxfp8"])
def test_unpack_gives_the_floats_of_the_codes(mode: str) -> None:
    group_size = {"affine": 64, "nvfp4": 16}.get(mode, 32)
    spec = QuantSpec(8 if mode == "mxfp8" else 4, group_size, mode)
    piece = piece_of((6, 128), spec=spec)
    floats = mx.array(RANDOM.standard_normal((6, 128), np.float32))
    packed = pack_block(floats, piece, 0, None, sample=slice(None))
    codes = mx.quantize(floats, spec.group_size, spec.bits, spec.mode)
    expected = mx.dequantize(*codes, group_size=spec.group_size, bits=spec.bits, mode=spec.mode)
    assert mx.allclose(unpack(packed.parts, piece), expected, atol=1e-6).item()
    assert packed.error == pytest.approx(mx.sum((floats - expected) ** 2).item(), rel=1e-3)
    assert packed.norm == pytest.approx(mx.sum(floats**2).item(), rel=1e-5)


def test_a_transform_of_blocks_is_that_of_the_whole() -> None:
    floats = mx.array(RANDOM.standard_normal((10, 32), np.float32))
    transform = Transform(
        rows=RANDOM.random(10, np.float32),
        columns=RANDOM.random(32, np.float32),
    )
    expected = np.array(floats) * transform.rows[:, None] * transform.columns  # type: ignore[index]
    parts = [transform.apply(floats[i : i + 4], i) for i in range(0, 10, 4)]
    assert np.allclose(np.array(mx.concatenate(parts)), expected, atol=1e-7)


def test_a_transform_scales_the_elements_of_a_vector() -> None:
    transform = Transform(rows=np.arange(6, dtype=np.float32))
    assert transform.apply(mx.ones(3), 2).tolist() == [2, 3, 4]


@pytest.mark.parametrize(("dtype", "largest"), [("F16", 65504.0), ("BF16", 3.3895313892515355e38)])
def test_a_cast_never_makes_an_infinity(dtype: str, largest: float) -> None:
    values = mx.array([1.0, 3.4e38, -3.4e38, largest])
    packed = pack_block(values, piece_of((4,), dtype=dtype), 0, None, sample=slice(None))
    (cast,) = packed.parts.values()
    assert packed.beyond == 2
    assert cast.tolist() == [1.0, largest, -largest, largest]


def test_what_rounds_to_the_limit_in_its_own_dtype_is_still_beyond_it() -> None:
    """The next bfloat16 after float16's largest value is 65536, which float16 calls infinite."""
    values = mx.array([65536.0, -70000.0, 1.0]).astype(mx.bfloat16)
    packed = pack_block(values, piece_of((3,), dtype="F16"), 0, None, sample=slice(None))
    assert packed.beyond == 2
    assert packed.parts["m.weight"].tolist() == [65504.0, -65504.0, 1.0]


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["fp32", "bf16"])
def test_no_group_is_too_wide_for_its_format(mode: str, dtype: mx.Dtype) -> None:
    group_size = {"affine": 64, "nvfp4": 16}.get(mode, 32)
    spec = QuantSpec(8 if mode == "mxfp8" else 4, group_size, mode)
    piece = piece_of((3, 64), dtype="F32" if dtype == mx.float32 else "BF16", spec=spec)
    values = RANDOM.standard_normal((3, 64), np.float32)
    values[1, 0], values[1, 1] = 3e38, -3e38
    packed = pack_block(mx.array(values).astype(dtype), piece, 0, None, sample=slice(None))
    assert packed.beyond == 2
    assert mx.isfinite(unpack(packed.parts, piece)).all().item()
    assert 0 < packed.error < math.inf
    assert 0 < packed.norm < math.inf


def test_what_is_stored_as_it_was_has_no_error() -> None:
    values = mx.array([1.0, 2.0]).astype(mx.bfloat16)
    packed = pack_block(values, piece_of((2,), dtype="BF16"), 0, None, sample=slice(None))
    assert (packed.error, packed.norm, packed.beyond) == (0, 0, 0)
