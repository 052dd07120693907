"""A learned conversion from a text to a verified folder, learnt once however often it stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers.folders import write_folder

from glm_mlx.config import read_config
from glm_mlx.convert import pipeline
from glm_mlx.convert.learned import LEARNED, calibration_ids, read_transforms, write_transforms
from glm_mlx.convert.pack import Transform
from glm_mlx.convert.pipeline import convert_folder
from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.settings import Progress, Settings
from glm_mlx.convert.verify import verify_folder
from glm_mlx.errors import CheckpointError, InputFileError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source", "chatglm")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    text = tmp_path / "text.txt"
    text.write_text("the weather in 北京 is 12345 hello " * 60, encoding="utf-8")
    return Settings(
        source_name="tiny",
        recipe=Recipe(bits=3),
        learn="awq",
        calibration=text,
        max_shard_bytes=20_000,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_was_learnt_is_applied_kept_and_verified(
    tmp_path: Path, source: Path, settings: Settings
) -> None:
    report = convert_folder(source, tmp_path / "result", settings)
    assert report.recipe["learn"] == "awq"
    assert read_transforms(tmp_path / "result")
    plain = Settings(source_name="tiny", recipe=Recipe(bits=3))
    convert_folder(source, tmp_path / "plain", plain)
    assert not read_transforms(tmp_path / "plain")
    assert verify_folder(tmp_path / "result", source, full=True).findings == ()
    (tmp_path / "result" / LEARNED).unlink()
    assert verify_folder(tmp_path / "result", source, full=True).findings


def test_an_interrupted_conversion_does_not_learn_again(
    tmp_path: Path, source: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_folder(source, tmp_path / "whole", settings)

    def stop(progress: Progress) -> None:
        if progress.stage == "converting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_folder(source, tmp_path / "result", settings, on_progress=stop)
    monkeypatch.delattr(pipeline, "learn_transforms")
    convert_folder(source, tmp_path / "result", settings)
    assert files_of(tmp_path / "result") == files_of(tmp_path / "whole")


def test_a_damaged_file_of_transforms_is_named(
    tmp_path: Path, source: Path, settings: Settings
) -> None:
    convert_folder(source, tmp_path / "result", settings)
    (tmp_path / "result" / LEARNED).write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=LEARNED):
        verify_folder(tmp_path / "result", source)


def test_transforms_come_back_as_they_were_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    written = {
        "a.weight": Transform(rows=random.random(3, np.float32)),
        "b.weight": Transform(columns=random.random(5, np.float32)),
    }
    write_transforms(tmp_path, written)
    found = read_transforms(tmp_path)
    assert found.keys() == written.keys()
    assert np.array_equal(found["a.weight"].rows, written["a.weight"].rows)  # type: ignore[arg-type]
    assert found["a.weight"].columns is None
    assert np.array_equal(found["b.weight"].columns, written["b.weight"].columns)  # type: ignore[arg-type]


def test_a_text_becomes_rows_of_one_length_each_with_the_prefix(
    source: Path, settings: Settings
) -> None:
    rows = calibration_ids(source, read_config(source), settings)
    assert rows
    assert {len(row) for row in rows} == {512}
    assert len({tuple(row[:2]) for row in rows}) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"too short", "holds . tokens; a calibration text needs"),
        (b"\xff\xfe" * 2000, "not UTF-8 at byte 0"),
    ],
)
def test_a_text_that_cannot_be_used_is_named(
    source: Path, settings: Settings, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(InputFileError, match=message) as caught:
        calibration_ids(source, read_config(source), replace(settings, calibration=file))
    assert caught.value.file == str(file)
