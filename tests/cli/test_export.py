"""`export`: the other layouts, and the same way of being told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from makers.folders import FolderMaker

from glm_mlx.checkpoint import Checkpoint

Run = Callable[..., Result]
Refused = Callable[..., str]
EXPECTED = {"hf": "glm", "chatglm": "chatglm"}


@pytest.mark.parametrize("layout", EXPECTED)
def test_a_quantized_folder_is_unpacked(
    run: Run, make_folder: FolderMaker, tmp_path: Path, layout: str
) -> None:
    source = make_folder("glm", quantize={"bits": 8, "group_size": 32})
    out = tmp_path / "out"
    result = run("export", str(source), str(out), "--layout", layout, "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("part ")
    assert result.stderr.startswith(f"glm-mlx: done: {out}, ")
    assert json.loads((out / "config.json").read_text())["model_type"] == EXPECTED[layout]
    tensors = Checkpoint.open(out).tensors
    assert {info.dtype for info in tensors.values()} == {"BF16"}
    assert any("query_key_value" in name for name in tensors) is (layout == "chatglm")


def test_programs_get_json_lines(run: Run, make_folder: FolderMaker, tmp_path: Path) -> None:
    result = run("export", str(make_folder("glm4")), str(tmp_path / "out"), "--json")
    *progress, done = map(json.loads, result.stdout.splitlines())
    assert progress[-1]["done_bytes"] == progress[-1]["total_bytes"]
    assert (done["event"], done["report"]["layout"]) == ("done", "hf")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("src",), "Missing argument 'DEST'"),
        (("src", "out", "--layout", "mlx"), "'mlx' is not one of"),
        (("src", "out", "--max-shard-size", "many"), "write it like 5GB"),
        (("src", "out", "-q"), "No such option"),
    ],
)
def test_wrong_usage(refused: Refused, words: tuple[str, ...], said: str) -> None:
    assert said in refused("export", *words, code=2)


def test_the_destination_must_be_new(
    refused: Refused, make_folder: FolderMaker, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    refused("export", str(make_folder("glm4")), str(tmp_path), code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
