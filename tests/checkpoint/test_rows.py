"""Rows by position: the same values as a whole read, cut and replaced files refused, bits kept."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from glm_mlx.checkpoint import Checkpoint, RowReader, as_bytes, as_mlx, count_non_finite
from glm_mlx.checkpoint.header import DTYPES
from glm_mlx.errors import CheckpointError

SHARD = "model.safetensors"
FLOATS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {
        "matrix": mx.arange(60, dtype=mx.float32).reshape(12, 5).astype(mx.bfloat16),
        "vector": mx.arange(7, dtype=mx.float32),
    }
    mx.save_safetensors(str(tmp_path / SHARD), tensors)
    return tmp_path


# ---- read ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_those_of_the_whole_tensor(tmp_path: Path, dtype: str) -> None:
    whole = mx.arange(42).reshape(7, 3, 2).astype(DTYPES[dtype])
    other = mx.arange(5).astype(mx.uint8)
    mx.save_safetensors(str(tmp_path / SHARD), {"whole": whole, "other": other})
    checkpoint = Checkpoint.open(tmp_path)
    info = checkpoint.tensors["whole"]
    with RowReader(checkpoint) as rows:
        for start, stop in ((0, 7), (2, 5), (6, 7), (3, 3)):
            block = as_mlx(rows.read(info, start, stop), dtype)
            assert block.dtype == whole.dtype
            assert block.shape == (stop - start, 3, 2)
            assert mx.array_equal(block, whole[start:stop])


def test_every_bit_of_a_float_arrives(tmp_path: Path) -> None:
    """NaNs with a payload, signalling ones and subnormals included."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    for name in ("BF16", "F16"):
        mx.save_safetensors(str(tmp_path / SHARD), {"all": mx.array(bits).view(DTYPES[name])})
        checkpoint = Checkpoint.open(tmp_path)
        with RowReader(checkpoint) as rows:
            block = rows.read(checkpoint.tensors["all"], 0, bits.size)
        assert block.dtype == np.uint16
        assert np.array_equal(block, bits)
        assert as_bytes(as_mlx(block, name)) == bits.tobytes()


def test_a_short_read_is_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(folder)
    info = checkpoint.tensors["matrix"]
    with RowReader(checkpoint) as rows:
        whole = rows.read(info, 0, 12)
        preadv = os.preadv
        monkeypatch.setattr(
            os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][:7]], at)
        )
        assert np.array_equal(rows.read(info, 0, 12), whole)


def test_each_file_is_opened_once_and_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(folder)
    opened: list[int] = []
    open_file = os.open

    def note(*arguments: object) -> int:
        opened.append(open_file(*arguments))  # type: ignore[arg-type]
        return opened[-1]

    with RowReader(checkpoint) as rows:
        monkeypatch.setattr(os, "open", note)
        for info in checkpoint.tensors.values():
            rows.read(info, 0, 1)
            rows.read(info, 1, 2)
    assert len(opened) == 1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened[0])


def test_a_file_cut_while_open_is_refused(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    info = max(checkpoint.tensors.values(), key=lambda info: info.stop)
    with RowReader(checkpoint) as rows:
        rows.read(info, 0, 1)
        os.truncate(info.file, info.stop - 1)
        with pytest.raises(CheckpointError, match="cut off") as caught:
            rows.read(info, 0, info.shape[0])
    assert caught.value.field == info.name
    assert caught.value.file == str(info.file)


def test_a_file_replaced_before_it_is_read_is_refused(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    shard = folder / SHARD
    (folder / "other").write_bytes(shard.read_bytes())
    (folder / "other").replace(shard)
    with RowReader(checkpoint) as rows, pytest.raises(CheckpointError, match="changed"):
        rows.read(checkpoint.tensors["vector"], 0, 1)


def test_a_volume_that_goes_away_is_an_error_of_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> int:
        raise OSError(5, "Input/output error")

    checkpoint = Checkpoint.open(folder)
    with RowReader(checkpoint) as rows:
        monkeypatch.setattr(os, "preadv", gone)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: .*Input/output error"):
            rows.read(checkpoint.tensors["vector"], 0, 1)


# ---- as_bytes ----


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 4), (5,), (3, 4)])
def test_bytes_are_those_of_the_row_major_array(dtype: mx.Dtype, shape: tuple[int, ...]) -> None:
    array = mx.random.randint(0, 100, shape).astype(dtype)
    size = array.dtype.size
    unsigned = array.view({1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[size])
    assert as_bytes(array) == np.array(unsigned).tobytes()
    if array.ndim == 2:
        assert as_bytes(array.T) == np.array(unsigned).T.tobytes()


# ---- count_non_finite ----


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_non_finite_values_are_told_from_all_others(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = np.array(mx.isfinite(mx.array(bits).view(DTYPES[dtype])))
    assert count_non_finite(bits[finite], dtype) == 0
    assert count_non_finite(bits, dtype) == np.count_nonzero(~finite)
    for one in bits[~finite][::37]:
        assert count_non_finite(np.append(bits[finite], one), dtype) == 1


@given(arrays.arrays(np.uint32, st.integers(0, 30)))
def test_non_finite_fp32_values_are_counted(bits: np.ndarray) -> None:
    expected = np.count_nonzero(~np.isfinite(bits.view(np.float32)))
    assert count_non_finite(bits, "F32") == expected
    assert count_non_finite(bits.tobytes(), "F32") == expected


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_bad_value_is_found_wherever_it_stands(dtype: str) -> None:
    """A block is looked at in parts; the values at their ends count too."""
    block = np.zeros((3, 1 << 18), FLOATS[dtype])
    infinity = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}[dtype]
    for place in (0, (1 << 17) - 1, 1 << 17, 1 << 18, block.size - 1):
        block.flat[place] = infinity
        assert count_non_finite(block, dtype) == 1
        block.flat[place] = 0


def test_integers_have_no_bad_values() -> None:
    assert count_non_finite(np.full(9, 0xFFFFFFFF, np.uint32), "U32") == 0
