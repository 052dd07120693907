"""What a report records of the options: all that decides the result, however it was asked for."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import MappingProxyType

import pytest

from glm_mlx.convert import settings as module
from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.settings import Settings
from glm_mlx.errors import InputFileError


def described(recipe: Recipe) -> dict[str, object]:
    return Settings(source_name="tiny", recipe=recipe).described()


@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        (
            [Recipe(), Recipe(bits=4), Recipe(group_size=64), Recipe.parse("4bit")],
            {"bits": 4, "group_size": 64, "mode": "affine"},
        ),
        (
            [Recipe(mode="mxfp4"), Recipe(mode="mxfp4", bits=4, group_size=32)],
            {"bits": 4, "group_size": 32, "mode": "mxfp4"},
        ),
        (
            [Recipe.parse("mixed_3_6"), Recipe(mixed="mixed_3_6", group_size=64)],
            {"mixed": "mixed_3_6", "group_size": 64, "mode": "affine"},
        ),
        (
            [Recipe.parse("4.6bit"), Recipe(target_bits=4.6, group_size=64)],
            {"target_bits": 4.6, "group_size": 64, "mode": "affine"},
        ),
        (
            [Recipe.parse("5GB")],
            {"target_bytes": 5 * 10**9, "group_size": 64, "mode": "affine"},
        ),
    ],
)
def test_recipes_that_decide_alike_are_recorded_alike_and_whole(
    recipes: list[Recipe], expected: dict[str, object]
) -> None:
    for recipe in recipes:
        found = described(recipe)
        assert {key: found[key] for key in found if key in vars(recipe)} == expected
        again = Recipe(**{key: found[key] for key in expected})  # type: ignore[arg-type]
        assert again == recipe.resolved
        assert again.label == recipe.label


def test_overrides_of_any_mapping_are_recorded_as_they_were() -> None:
    changed = {"*.down_proj": {"bits": 6}}
    recipe = Recipe(overrides=MappingProxyType({**changed, "lm_head": MappingProxyType({})}))
    changed["*.down_proj"]["bits"] = 7
    found = json.loads(json.dumps(described(recipe)))
    assert found["overrides"] == {"*.down_proj": {"bits": 6}, "lm_head": {}}


def calibrated(file: Path) -> Settings:
    return Settings(source_name="tiny", recipe=Recipe(), learn="awq", calibration=file)


def test_a_calibration_text_may_be_anywhere_and_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"some text")
    (tmp_path / "link").symlink_to("text")
    settings = calibrated(tmp_path / "link")
    assert settings.described()["calibration"] == hashlib.sha256(b"some text").hexdigest()
    (tmp_path / "text").write_bytes(b"another")
    assert settings.calibration_bytes == b"some text"
    assert settings.described()["calibration"] == hashlib.sha256(b"some text").hexdigest()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda file: os.mkfifo(file), "is not a regular file"),
        (lambda file: file.mkdir(), "is not a regular file"),
        (lambda file: file.symlink_to("/dev/zero"), "is not a regular file"),
        (lambda file: file.write_bytes(b"12345678"), "is larger than 7 bytes"),
        (lambda file: file.symlink_to("gone"), "cannot be read: No such file"),
        (lambda file: None, "cannot be read: No such file"),
    ],
    ids=["pipe", "folder", "device", "large", "link to nothing", "absent"],
)
def test_a_calibration_text_that_is_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object, said: str
) -> None:
    monkeypatch.setattr(module, "_CALIBRATION_LIMIT_BYTES", 7)
    file = tmp_path / "text.txt"
    assert callable(make)
    make(file)
    with pytest.raises(InputFileError, match=f"^{file}: {said}"):
        calibrated(file).described()
