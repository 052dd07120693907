"""Plans of shards: every tensor once, groups together, readable headers, mlx-lm's index."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_mlx.checkpoint.header import DTYPES, read_header
from glm_mlx.checkpoint.layout import ShardPlan, TensorSpec, index_json, plan_shards

GB = 1 << 30


def make_groups(sizes: list[list[tuple[str, tuple[int, ...]]]]) -> list[list[TensorSpec]]:
    return [
        [TensorSpec(f"layer.{i}.{j}", dtype, shape) for j, (dtype, shape) in enumerate(group)]
        for i, group in enumerate(sizes)
    ]


groups_of_tensors = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(list(DTYPES)),
            st.lists(st.integers(0, 5), max_size=3).map(tuple),
        ),
        min_size=1,
        max_size=3,
    ),
    min_size=1,
    max_size=12,
).map(make_groups)


@given(groups_of_tensors, st.integers(1, 400))
def test_a_plan_holds_every_tensor_once_and_groups_together(
    groups: list[list[TensorSpec]], max_bytes: int
) -> None:
    shards = plan_shards(groups, max_bytes=max_bytes, file_format="mlx")
    names = [spec.name for group in groups for spec in group]
    assert sorted(name for shard in shards for name in shard.spans) == sorted(names)
    home = {name: number for number, shard in enumerate(shards) for name in shard.spans}
    assert [home[name] for name in names] == sorted(home.values())
    for group in groups:
        assert len({home[spec.name] for spec in group}) == 1
    for shard in shards:
        held = [group for group in groups if group[0].name in shard.spans]
        data_bytes = sum(spec.size_bytes for spec in shard.specs)
        assert data_bytes <= max_bytes or len(held) == 1


@given(groups_of_tensors)
def test_a_header_describes_the_spans(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[TensorSpec]]
) -> None:
    (shard,) = plan_shards(groups, max_bytes=GB, file_format="mlx")
    file = tmp_path_factory.mktemp("plan") / shard.file_name
    file.write_bytes(shard.header.ljust(shard.size_bytes, b"\0"))
    _, infos = read_header(file)
    assert [(i.name, i.dtype, i.shape, (i.start, i.stop)) for i in infos if i.size_bytes] == [
        (spec.name, spec.dtype, spec.shape, shard.spans[spec.name])
        for spec in shard.specs
        if spec.size_bytes
    ]
    assert {(i.name, i.dtype, i.shape) for i in infos} == {
        (spec.name, spec.dtype, spec.shape) for spec in shard.specs
    }
    assert len(shard.header) % 8 == 0
    for info in infos:
        assert info.start % DTYPES[info.dtype].size == 0


def test_one_shard_has_the_plain_name_and_more_are_numbered() -> None:
    groups = make_groups([[("F32", (10,))]] * 3)

    def names(max_bytes: int) -> list[str]:
        return [s.file_name for s in plan_shards(groups, max_bytes=max_bytes, file_format="pt")]

    assert names(120) == ["model.safetensors"]
    assert names(119) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert names(39) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_the_header_names_its_format() -> None:
    for file_format in ("mlx", "pt"):
        (shard,) = plan_shards(make_groups([[("F32", (1,))]]), max_bytes=9, file_format=file_format)
        assert json.loads(shard.header[8:])["__metadata__"] == {"format": file_format}


def read_with_mlx(shard: ShardPlan, folder: Path) -> dict[str, mx.array]:
    file = folder / shard.file_name
    file.write_bytes(shard.header + bytes(shard.size_bytes - len(shard.header)))
    loaded = mx.load(str(file))
    assert isinstance(loaded, dict)
    return loaded


def test_mlx_reads_what_is_planned(tmp_path: Path) -> None:
    groups = make_groups([[("U8", (3,)), ("U32", (2, 2)), ("BF16", (5,))], [("F32", ())]])
    (shard,) = plan_shards(groups, max_bytes=GB, file_format="mlx")
    loaded = read_with_mlx(shard, tmp_path)
    for spec in shard.specs:
        array = loaded[spec.name]
        assert (array.dtype, array.shape) == (DTYPES[spec.dtype], spec.shape)


def test_the_index_is_the_one_of_mlx_lm() -> None:
    groups = make_groups([[("U32", (10,)), ("BF16", (5,))], [("F32", (9,))], [("F32", (8,))]])
    shards = plan_shards(groups, max_bytes=60, file_format="mlx")
    index = json.loads(index_json(shards, parameters=123))
    assert index == {
        "metadata": {
            "total_size": sum(
                math.prod(s.shape) * DTYPES[s.dtype].size for group in groups for s in group
            ),
            "total_parameters": 123,
        },
        "weight_map": {
            "layer.0.0": "model-00001-of-00003.safetensors",
            "layer.0.1": "model-00001-of-00003.safetensors",
            "layer.1.0": "model-00002-of-00003.safetensors",
            "layer.2.0": "model-00003-of-00003.safetensors",
        },
    }
    assert list(index["weight_map"]) == sorted(index["weight_map"])
