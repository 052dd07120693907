"""Names that a conversion writes are known as ours, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from makers.folders import write_folder
from makers.results import result_files

from glm_mlx.convert.ours import is_ours, strangers, strangers_in_result
from glm_mlx.convert.pipeline import convert_folder
from glm_mlx.convert.settings import LAYOUTS, Settings


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_that_a_conversion_writes_is_ours(tmp_path: Path, layout: str) -> None:
    source = write_folder(tmp_path / "source", "chatglm")
    (source / "LICENSE").write_text("licence")
    (source / "special_tokens_map.json").write_text("{}")
    settings = Settings(source_name="tiny", layout=layout, max_shard_bytes=20_000)
    convert_folder(source, tmp_path / "result", settings)
    names = os.listdir(tmp_path / "result")
    assert {"LICENSE", "special_tokens_map.json", "README.md"} <= {*names}
    assert [name for name in names if not is_ours(name)] == []
    assert strangers(tmp_path / "result") == []


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors.part",
        "model-100000-of-100000.safetensors",
        "learned.safetensors",
        "config.json.part",
        ".DS_Store",
        "._config.json",
        "._model.safetensors.part",
    ],
)
def test_names_that_are_ours(name: str) -> None:
    assert is_ours(name)


@pytest.mark.parametrize(
    "name",
    [
        "adapters.safetensors",
        "model.safetensors.bak",
        "model-1.safetensors",
        "my-model.safetensors",
        "model-٠٠٠٠١-of-٠٠٠٠٢.safetensors",
        "model.safetensors\n",
        "Config.json",
        "config.json.part.part",
        "._notes.txt",
        ".part",
        "notes.txt",
        "",
    ],
)
def test_names_that_are_not(name: str) -> None:
    assert not is_ours(name)


def test_only_regular_files_are_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").mkdir()
    (tmp_path / "LICENSE").symlink_to("config.json")
    os.mkfifo(tmp_path / "tokenizer.json")
    assert strangers(tmp_path) == ["LICENSE", "README.md", "tokenizer.json"]


def test_a_result_owns_what_its_manifest_lists(tmp_path: Path) -> None:
    for name, data in result_files(["config.json", "notes.txt"]).items():
        (tmp_path / name).write_bytes(data)
    assert strangers_in_result(tmp_path) == []
    for name in ("config.json", "tokenizer.json", "notes.txt", "README.md", "config.json.part"):
        (tmp_path / name).write_text("x")
    assert strangers_in_result(tmp_path) == ["config.json.part", "notes.txt", "tokenizer.json"]
    (tmp_path / "checksums.json").unlink()
    assert strangers_in_result(tmp_path) is None
