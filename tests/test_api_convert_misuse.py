"""The Python face of conversion used wrongly: refused by name, before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from makers.folders import FolderMaker

import glm_mlx
from glm_mlx import OptionError, Recipe

OPTIONS: dict[str, Any] = {
    "quantize": [5, True, b"4bit", [], {}],
    "dtype": [5, [], "int8"],
    "learn": [5, {}],
    "max_shard_bytes": ["1GB", None, True, 1.5, 0, -1],
    "on_progress": [5, "print"],
    "destination": [5, b"out", "", "a\0b", "a\ud800", "~nobody at all/x"],
    "calibration": [5, b"text", "a\0b", "~nobody at all/x"],
    "revision": [5, b"main", ""],
    "rope": [5, [1]],
    "dequantize": ["no", 1, None],
    "trust_config": ["no"],
    "overwrite": ["no", 0],
    "allow_overflow": [None],
}
PATHS = [None, 5, b"x", "", "a\0b", "~nobody at all/x"]


@pytest.fixture
def source(make_folder: FolderMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model; the working folder is empty and must stay so."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return make_folder("glm4")


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OPTIONS.items() for value in values]
)
def test_convert_refuses_by_name(source: Path, name: str, value: object) -> None:
    options: dict[str, Any] = {"destination": "out", name: value}
    if name == "calibration":
        options |= {"quantize": "4bit", "learn": "awq"}
    with pytest.raises(OptionError) as refused:
        glm_mlx.convert(source, **options)
    assert refused.value.field == name
    assert name in str(refused.value)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("value", PATHS)
def test_a_source_must_be_a_name(source: Path, value: Any) -> None:
    for call in (
        lambda: glm_mlx.convert(value),
        lambda: glm_mlx.convert(value, "out"),
        lambda: glm_mlx.export(value, "out"),
        lambda: glm_mlx.verify(value),
        lambda: glm_mlx.verify(value, source),
        lambda: glm_mlx.upload(value, "own/er"),
    ):
        with pytest.raises(OptionError):
            call()
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"layout": None},
        {"layout": 5},
        {"dtype": []},
        {"max_shard_bytes": "1GB"},
        {"on_progress": 5},
        {"destination": None},
        {"overwrite": "no"},
        {"revision": 5},
        {"rope": 5},
    ],
)
def test_export_refuses_by_name(source: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as refused:
        glm_mlx.export(source, **{"destination": "out", **options})
    assert refused.value.field == next(iter(options))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"full": "no"}, {"on_progress": 5}, {"source": 5}, {"revision": 5}]
)
def test_verify_refuses(source: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        glm_mlx.verify(source, **{"source": source, **options})


@pytest.mark.parametrize("repo", [None, 5, b"own/er", "", "own", ["own/er"]])
def test_a_repository_is_a_text(source: Path, repo: Any) -> None:
    with pytest.raises(OptionError, match="is not owner/name"):
        glm_mlx.upload(source, repo, dry_run=True)


@pytest.mark.parametrize("option", ["private", "dry_run"])
def test_an_upload_is_not_private_by_any_word(source: Path, option: str) -> None:
    with pytest.raises(OptionError, match=f"{option} is 'no'; expected True or False"):
        glm_mlx.upload(source, "own/er", **{option: "no"})


@pytest.mark.parametrize(
    "overrides", [5, None, [], "*", {5: False}, {b"*": False}, {None: {"bits": 4}}]
)
def test_overrides_are_patterns(overrides: Any) -> None:
    with pytest.raises(OptionError) as refused:
        Recipe(overrides=overrides)
    assert refused.value.field == "overrides"
