"""Reading what was checked: values kept, changed files noticed, bad values and bit rot found."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from glm_mlx.checkpoint import Checkpoint, reader
from glm_mlx.checkpoint.header import DTYPES
from glm_mlx.errors import CheckpointError

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mx.save_safetensors(
        str(tmp_path / ONE),
        {
            "half": mx.arange(6, dtype=mx.float16).reshape(2, 3),
            "brain": mx.full((4,), 3e38, mx.bfloat16),
            "quantized": mx.full((3,), 0xFFFFFFFF, mx.uint32),
        },
    )
    mx.save_safetensors(str(tmp_path / TWO), {"full": mx.array([0.0, -3e38, 1e-45])})
    return tmp_path


def write_manifest(folder: Path, **changes: object) -> None:
    files = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("*.safetensors"))
    }
    manifest = {"algorithm": "sha256", "files": files, **changes}
    (folder / "checksums.json").write_text(json.dumps(manifest))


def flip(file: Path, offset: int, bits: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= bits
    file.write_bytes(data)


# ---- read ----


@pytest.mark.parametrize("metadata", [None, {"format": "mlx", "note": "\n"}])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_read_returns_what_was_written(
    tmp_path: Path, dtype: mx.Dtype, metadata: dict[str, str] | None
) -> None:
    written = {
        "matrix": mx.arange(12).reshape(3, 4).astype(dtype),
        "scalar": mx.array(1).astype(dtype),
        "empty": mx.zeros((0, 4), dtype),
    }
    mx.save_safetensors(str(tmp_path / "model.safetensors"), written, metadata)
    checkpoint = Checkpoint.open(tmp_path)
    arrays = checkpoint.read()
    assert arrays.keys() == checkpoint.tensors.keys() == written.keys()
    for name, array in arrays.items():
        info = checkpoint.tensors[name]
        assert (array.shape, array.dtype) == (info.shape, DTYPES[info.dtype])
        assert array.dtype == dtype
        assert array.nbytes == info.size_bytes
        assert mx.array_equal(array, written[name])


def test_offsets_are_where_the_bytes_are(folder: Path) -> None:
    expected = load_file(folder / TWO)["full"].tobytes()
    info = Checkpoint.open(folder).tensors["full"]
    assert info.file.read_bytes()[info.start : info.stop] == expected


def test_open_reads_headers_only_and_no_other_file(folder: Path) -> None:
    """In a process of its own, since an audit hook cannot be taken off."""
    (folder / "config.json").write_text("{}")
    (folder / "model.py").write_text("raise SystemExit('ran')")
    program = f"""
import sys
from pathlib import Path
from glm_mlx.checkpoint import Checkpoint
Checkpoint.open(Path({str(folder)!r}))  # Python imports a codec the first time
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
Checkpoint.open(Path({str(folder)!r}))
print(sorted(Path(str(path)).name for path in opened), "numpy" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == f"{[ONE, TWO]} False"


# ---- 36: files that change ----


def replace(file: Path) -> None:
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    os.utime(copy, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    copy.replace(file)


def rewrite_in_place(file: Path) -> None:
    modified_ns = file.stat().st_mtime_ns
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(modified_ns, modified_ns + 1))


def rewrite_and_set_the_time_back(file: Path) -> None:
    before = file.stat()
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of a disk ticks slowly
        with file.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"?")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


CHANGES = [
    pytest.param(replace, "changed since it was opened", id="replaced"),
    pytest.param(rewrite_in_place, "changed since it was opened", id="rewritten"),
    pytest.param(rewrite_and_set_the_time_back, "changed since it was opened", id="set back"),
    pytest.param(cut, "changed since it was opened", id="cut"),
    pytest.param(Path.unlink, "cannot be read: No such file", id="removed"),
]


@pytest.mark.parametrize("use", [Checkpoint.read, Checkpoint.check_data])
@pytest.mark.parametrize(("change", "fragment"), CHANGES)
def test_change_before_use_is_noticed(
    folder: Path,
    use: Callable[[Checkpoint], object],
    change: Callable[[Path], None],
    fragment: str,
) -> None:
    checkpoint = Checkpoint.open(folder)
    use(checkpoint)
    change(folder / TWO)
    with pytest.raises(CheckpointError, match=fragment) as caught:
        use(checkpoint)
    assert caught.value.file == str(folder / TWO)


@pytest.mark.parametrize(("change", "fragment"), CHANGES)
def test_change_while_arrays_wait_is_noticed(
    folder: Path, change: Callable[[Path], None], fragment: str
) -> None:
    checkpoint = Checkpoint.open(folder)
    arrays = checkpoint.read()
    mx.eval(arrays["half"])
    checkpoint.check_unchanged()
    change(folder / ONE)
    with pytest.raises(CheckpointError, match=fragment):
        checkpoint.check_unchanged()


@pytest.mark.parametrize("change", [replace, rewrite_in_place, cut])
def test_change_during_the_check_is_noticed(folder: Path, change: Callable[[Path], None]) -> None:
    checkpoint = Checkpoint.open(folder)
    pending = [change]

    def on_progress(done_bytes: int, total_bytes: int) -> None:
        if pending:
            pending.pop()(folder / TWO)

    with pytest.raises(CheckpointError, match=r"changed since|cut off while"):
        checkpoint.check_data(on_progress=on_progress)


# ---- 34: values that are not finite ----


def test_finite_values_of_every_size_pass(folder: Path) -> None:
    assert Checkpoint.open(folder).check_data() == []


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("block_bytes", [8, 1 << 24])
def test_34_non_finite_values_are_counted_by_tensor(
    tmp_path: Path,
    dtype: mx.Dtype,
    value: float,
    block_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "_BLOCK_BYTES", block_bytes)
    values = np.ones(1003, np.float32)
    values[[0, 4, 500, 1002]] = value
    tensors = {"bad": mx.array(values).astype(dtype), "good": mx.ones(5, dtype)}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    assert Checkpoint.open(tmp_path).check_data() == [
        "model.safetensors: tensor 'bad': 4 of 1,003 values are NaN or infinite"
    ]


def test_progress_ends_at_the_size_of_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_BLOCK_BYTES", 8)
    seen: list[tuple[int, int]] = []
    Checkpoint.open(folder).check_data(on_progress=lambda *bytes_: seen.append(bytes_))
    total_bytes = sum((folder / name).stat().st_size for name in (ONE, TWO))
    assert seen == sorted(seen)
    assert seen[-1] == (total_bytes, total_bytes)
    assert {total for _, total in seen} == {total_bytes}
    assert max(b - a for (a, _), (b, _) in pairwise(seen)) <= 8


def test_the_check_needs_no_more_memory_than_some_blocks(tmp_path: Path) -> None:
    file = str(tmp_path / "model.safetensors")
    mx.save_safetensors(file, {"large": mx.zeros((96 << 20,), mx.uint8).view(mx.float32)})
    checkpoint = Checkpoint.open(tmp_path)
    tracemalloc.start()
    try:
        assert checkpoint.check_data() == []
        assert tracemalloc.get_traced_memory()[1] < 70 << 20
    finally:
        tracemalloc.stop()


# ---- 35: the manifest ----


def test_manifest_that_matches(folder: Path) -> None:
    write_manifest(folder)
    assert Checkpoint.open(folder).check_data() == []


@pytest.mark.parametrize("part", ["header", "data"])
def test_35_one_flipped_bit(folder: Path, part: str) -> None:
    write_manifest(folder)
    info = Checkpoint.open(folder).tensors["full"]
    name_in_header = info.file.read_bytes().index(b"full")
    flip(folder / TWO, *((name_in_header, 32) if part == "header" else (info.stop - 1, 1)))
    with pytest.raises(CheckpointError, match=r"its sha256 is not the one in checksums\.json") as e:
        Checkpoint.open(folder).check_data()
    assert e.value.file == str(folder / TWO)


def test_35_shard_the_manifest_does_not_list(folder: Path) -> None:
    write_manifest(folder, files={})
    with pytest.raises(CheckpointError, match="its sha256 is not the one"):
        Checkpoint.open(folder).check_data()


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"algorithm": "md5"}, r'must be \{"algorithm": "sha256"'),
        ({"files": []}, r'must be \{"algorithm": "sha256"'),
        ({"files": {ONE: "0"}}, f"'{ONE}': '0' is not a sha256"),
        ({"files": {ONE: 0}}, f"'{ONE}': 0 is not a sha256"),
    ],
)
def test_35_manifest_that_is_none(folder: Path, changes: dict[str, object], fragment: str) -> None:
    write_manifest(folder, **changes)
    with pytest.raises(CheckpointError, match=fragment) as caught:
        Checkpoint.open(folder).check_data()
    assert caught.value.file == str(folder / "checksums.json")


# ---- all of it at random ----


@pytest.mark.parametrize(
    "count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)], ids="{:,}".format
)
def test_damaged_folders_are_opened_or_refused(count: int) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests/bench/fuzz_checkpoint.py"), "--count", str(count)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    figures = json.loads(run.stdout)
    assert figures["opened"] > count // 100
    assert figures["refused"] > count // 2
    assert figures["opened"] + figures["refused"] == figures["count"] == count
