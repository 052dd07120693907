"""Writing a shard in any order: the bytes, their hash, and whole files or none when calls fail."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import tracemalloc
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.disk import Killed, failing_disk

from glm_mlx.checkpoint import Checkpoint, writer
from glm_mlx.checkpoint.layout import ShardPlan, TensorSpec, plan_shards
from glm_mlx.checkpoint.writer import ShardWriter, write_file
from glm_mlx.errors import ResourceError

NAME = "model.safetensors"


def make_plan(*sizes: int) -> ShardPlan:
    """A shard of one-dimensional tensors "0", "1", ... of so many bytes each."""
    specs = [TensorSpec(str(i), "U8", (size,)) for i, size in enumerate(sizes)]
    (plan,) = plan_shards([specs], max_bytes=1 << 40, file_format="mlx")
    return plan


def make_data(plan: ShardPlan, seed: int = 0) -> dict[str, bytes]:
    numbers = random.Random(seed)
    return {spec.name: numbers.randbytes(spec.size_bytes) for spec in plan.specs}


def write_shard(folder: Path, plan: ShardPlan, data: dict[str, bytes], step: int = 7) -> str:
    """Write all tensors in turns of `step` bytes, as the parts of a quantized matrix come."""
    with ShardWriter(folder, plan) as shard:
        for start in range(0, max(map(len, data.values())), step):
            for name, content in data.items():
                shard.write(name, content[start : start + step])
        return shard.finish()


# ---- bytes and hash ----


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_order_gives_the_same_file_and_its_hash(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], numbers: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    plan = make_plan(*sizes)
    data = make_data(plan)
    left = dict(data)
    with (
        pytest.MonkeyPatch.context() as patch,
        ShardWriter(folder, plan) as shard,
    ):
        patch.setattr(writer, "_BLOCK_BYTES", 3)
        while any(left.values()):
            name = numbers.choice([name for name, rest in left.items() if rest])
            count = numbers.randint(0, len(left[name]))
            shard.write(name, left[name][:count])
            left[name] = left[name][count:]
        digest = shard.finish()
    written = (folder / NAME).read_bytes()
    assert written == plan.header + b"".join(data.values())
    assert digest == hashlib.sha256(written).hexdigest()
    assert os.listdir(folder) == [NAME]


def test_what_is_written_opens_as_a_checkpoint(tmp_path: Path) -> None:
    tensors = {
        "weight": mx.arange(12, dtype=mx.uint32).reshape(3, 4),
        "scales": mx.arange(6).reshape(3, 2).astype(mx.bfloat16),
        "empty": mx.zeros((0, 2), mx.bfloat16),
    }
    specs = [
        TensorSpec(name, "U32" if name == "weight" else "BF16", array.shape)
        for name, array in tensors.items()
    ]
    (plan,) = plan_shards([specs], max_bytes=1 << 30, file_format="mlx")
    with ShardWriter(tmp_path, plan) as shard:
        for name, array in tensors.items():
            shard.write(name, memoryview(np.array(array.view(mx.uint8))))
        shard.finish()
    for name, array in Checkpoint.open(tmp_path).read().items():
        assert array.dtype == tensors[name].dtype
        assert mx.array_equal(array, tensors[name])


def test_a_shard_that_is_not_full_gets_no_name(tmp_path: Path) -> None:
    plan = make_plan(4, 4)
    with ShardWriter(tmp_path, plan) as shard:
        shard.write("0", b"abcd")
        shard.write("1", b"abc")
        with pytest.raises(AssertionError, match="not full: 1"):
            shard.finish()
        with pytest.raises(AssertionError, match="1 is full"):
            shard.write("1", b"de")
    assert os.listdir(tmp_path) == [f"{NAME}.part"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(100, 33)
    data = make_data(plan)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, view, at: pwrite(file, view[:5], at))
    digest = write_shard(tmp_path, plan, data, step=50)
    written = (tmp_path / NAME).read_bytes()
    assert written == plan.header + b"".join(data.values())
    assert digest == hashlib.sha256(written).hexdigest()


def test_memory_is_a_few_blocks(tmp_path: Path) -> None:
    """However much lies ahead of the hash and has to be read back."""
    half = 40 << 20
    plan = make_plan(half, half)
    block = bytes(1 << 20)
    with ShardWriter(tmp_path, plan) as shard:
        tracemalloc.start()
        for name in ("1", "0"):
            for _ in range(half // len(block)):
                shard.write(name, block)
        shard.finish()
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 10 << 20


# ---- failures ----


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    plan = make_plan(3)
    with failing_disk() as disk:
        write_shard(tmp_path, plan, make_data(plan))
        write_file(tmp_path / "config.json", b"{}")
    part, folder = f"{NAME}.part", tmp_path.name
    assert disk.log == [
        ("open", part),
        ("pwrite", part),
        ("pwrite", part),
        ("fsync", part),
        ("close", part),
        ("replace", part),
        ("open", folder),
        ("fsync", folder),
        ("close", folder),
        ("open", "config.json.part"),
        ("pwrite", "config.json.part"),
        ("fsync", "config.json.part"),
        ("close", "config.json.part"),
        ("replace", "config.json.part"),
        ("open", folder),
        ("fsync", folder),
        ("close", folder),
    ]


def outcomes() -> list[tuple[BaseException, bool]]:
    return [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False),
        (OSError(errno.EIO, os.strerror(errno.EIO)), False),
        (KeyboardInterrupt(), True),
        (Killed(), False),
        (Killed(), True),
    ]


@pytest.mark.parametrize(("error", "afterwards"), outcomes())
def test_any_call_may_fail(tmp_path: Path, error: BaseException, afterwards: bool) -> None:
    """The file is there whole or not at all; writing it again gives the same bytes."""
    plan = make_plan(9, 2, 5)
    old, new = make_data(plan, 1), make_data(plan, 2)
    whole = {plan.header + b"".join(data.values()) for data in (old, new)}
    with failing_disk() as disk:
        write_shard(tmp_path, plan, new)
    for number in range(len(disk.log)):
        write_shard(tmp_path, plan, old)
        expected = ResourceError if isinstance(error, OSError) else type(error)
        with (
            failing_disk(number, error, afterwards=afterwards),
            pytest.raises(expected),
        ):
            write_shard(tmp_path, plan, new)
        assert (tmp_path / NAME).read_bytes() in whole, disk.log[number]
        assert set(os.listdir(tmp_path)) <= {NAME, f"{NAME}.part"}
        digest = write_shard(tmp_path, plan, new)
        assert os.listdir(tmp_path) == [NAME]
        assert hashlib.sha256((tmp_path / NAME).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(("error", "afterwards"), outcomes())
def test_a_small_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, error: BaseException, afterwards: bool
) -> None:
    file = tmp_path / "config.json"
    for number in range(8):
        write_file(file, b"old")
        expected = ResourceError if isinstance(error, OSError) else type(error)
        with (
            failing_disk(number, error, afterwards=afterwards),
            pytest.raises(expected),
        ):
            write_file(file, b"new")
        assert file.read_bytes() in (b"old", b"new")
    write_file(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_to_be_full(tmp_path: Path, code: int) -> None:
    plan = make_plan(4)
    with failing_disk(1, OSError(code, "the reason")), pytest.raises(ResourceError) as caught:
        ShardWriter(tmp_path, plan)
    assert str(caught.value) == (
        f"{tmp_path / NAME}.part: the disk is full (the reason); free some space, "
        "then run the same command again to continue"
    )
    assert caught.value.exit_code == 4


def test_no_file_stays_open_after_a_failure(tmp_path: Path) -> None:
    for number in (0, 1, 2, 4):
        with failing_disk(number, OSError(errno.EIO, "broken")) as disk:
            with pytest.raises(ResourceError):
                write_shard(tmp_path, make_plan(4), {"0": b"abcd"})
            calls = [call for call, _ in disk.log]
        assert calls.count("close") == calls.count("open") - (number == 0)


def test_a_volume_that_cannot_flush_folders_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    def refuse_full(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "fsync", refuse_folders)
    monkeypatch.setattr("fcntl.fcntl", refuse_full)
    write_file(tmp_path / "a", b"a")
    assert (tmp_path / "a").read_bytes() == b"a"


def test_a_link_where_the_part_belongs_is_not_followed(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_bytes(b"mine")
    for name in (NAME, "config.json"):
        (tmp_path / f"{name}.part").symlink_to(private)
    with pytest.raises(ResourceError):
        ShardWriter(tmp_path, make_plan(4))
    with pytest.raises(ResourceError):
        write_file(tmp_path / "config.json", b"{}")
    assert private.read_bytes() == b"mine"
