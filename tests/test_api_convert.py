"""The Python face of conversion: names resolved, options checked, results told apart by name."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from makers.folders import FolderMaker, write_folder

import glm_mlx
from glm_mlx import Progress, Recipe
from glm_mlx.errors import GLMError, InputFileError, OptionError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the Hub that holds own/model; what it is asked for must be there."""
    folder = tmp_path / "models--own--model" / "snapshots" / COMMIT
    write_folder(folder, "chatglm")
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, **_: str(folder) if repo == "own/model" else pytest.fail(repo),
    )
    return folder


def test_a_hub_source_is_pinned_in_the_report_and_verified_from_it(
    hub: Path, tmp_path: Path
) -> None:
    report = glm_mlx.convert("own/model", tmp_path / "out", quantize="4bit", revision="main")
    assert (report.source, report.revision) == ("own/model", COMMIT)
    assert report.recipe["bits"] == 4
    assert "base_model: own/model\n" in (tmp_path / "out" / "README.md").read_text()
    assert glm_mlx.verify(tmp_path / "out").findings == ()


def test_a_folder_of_the_cache_is_known_for_what_it_is(hub: Path, tmp_path: Path) -> None:
    report = glm_mlx.convert(hub, tmp_path / "out")
    assert (report.source, report.revision) == ("own/model", COMMIT)


def test_a_folder_is_called_by_its_name_alone(make_folder: FolderMaker, tmp_path: Path) -> None:
    source = make_folder("glm4")
    report = glm_mlx.convert(source, tmp_path / "out")
    assert (report.source, report.revision) == (source.name, None)
    for file in (tmp_path / "out").glob("*.[jm][sd]*"):
        assert str(source.parent) not in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"quantize": "4bit"}, "model-4bit"),
        ({"quantize": Recipe(mode="mxfp4")}, "model-mxfp4"),
        ({"dtype": "float16"}, "model-float16"),
        ({}, "model-mlx"),
    ],
)
def test_without_a_destination_the_name_says_what_it_is(
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    name: str,
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    glm_mlx.convert("own/model", **options)
    assert [path.name for path in Path().iterdir()] == [name]
    (tmp_path / "cached").mkdir()
    monkeypatch.chdir(tmp_path / "cached")
    glm_mlx.convert(hub, **options)
    assert [path.name for path in Path().iterdir()] == [name]


def test_progress_reaches_the_end_and_an_exception_of_the_caller_stops_the_work(
    hub: Path, tmp_path: Path
) -> None:
    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        raise Enough

    out = tmp_path / "out"
    with pytest.raises(Enough):
        glm_mlx.convert(hub, out, on_progress=stop)
    assert not out.exists()
    seen: list[Progress] = []
    glm_mlx.convert(hub, out, on_progress=seen.append)
    assert seen[-1].done_bytes == seen[-1].total_bytes > 0
    done = [progress.done_bytes for progress in seen if progress.stage == seen[-1].stage]
    assert done == sorted(done)


def test_export_is_the_way_back(hub: Path, tmp_path: Path) -> None:
    glm_mlx.convert(hub, tmp_path / "mlx")
    report = glm_mlx.export(tmp_path / "mlx", tmp_path / "back", layout="chatglm")
    assert (report.layout, report.source) == ("chatglm", "mlx")
    before, after = (glm_mlx.load(folder) for folder in (hub, tmp_path / "back"))
    with before, after:
        ids = before.tokenizer.encode("Hello")
        assert before.generate(ids, max_tokens=8, temperature=0).token_ids == (
            after.generate(ids, max_tokens=8, temperature=0).token_ids
        )


def test_export_unpacks(hub: Path, tmp_path: Path) -> None:
    glm_mlx.convert(hub, tmp_path / "mlx", quantize="8bit")
    report = glm_mlx.export(tmp_path / "mlx", tmp_path / "hf")
    assert {tensor.stored for tensor in report.tensors} == {"f32"}
    assert glm_mlx.verify(tmp_path / "hf", tmp_path / "mlx").findings == ()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: glm_mlx.convert(s, quantize="7bits"), "recipe '7bits' is unknown"),
        (lambda s: glm_mlx.convert(s, dtype="int8"), "dtype is 'int8'; expected bfloat16 or"),
        (lambda s: glm_mlx.convert(s, learn="gptq"), "learn is 'gptq'; expected awq"),
        (lambda s: glm_mlx.convert(s, learn="awq", quantize="4bit"), "need each other"),
        (lambda s: glm_mlx.convert(s, calibration="text"), "need each other"),
        (lambda s: glm_mlx.convert(s, learn="awq", calibration="t"), "give --quantize too"),
        (lambda s: glm_mlx.convert(s, quantize="4bit", dequantize=True), "exclude each other"),
        (lambda s: glm_mlx.convert(s, max_shard_bytes=0), "max_shard_bytes is 0"),
        (lambda s: glm_mlx.convert(s, revision="main"), "applies to Hub repositories"),
        (lambda s: glm_mlx.export(s, "out", layout="mlx"), "layout is 'mlx'; expected hf or"),
        (lambda s: glm_mlx.export(s, "out", dtype="half"), "dtype is 'half'"),
        (lambda s: glm_mlx.upload(s, "name"), "repository 'name' is not owner/name"),
    ],
)
def test_options_are_checked_before_any_work(
    call: Any, said: str, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(OptionError) as caught:
        call(hub)
    assert said in str(caught.value)
    assert list(Path().iterdir()) == []


def test_an_upload_that_is_planned_touches_no_network(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        import_module("glm_mlx.api.convert"), "send", lambda *_, **__: pytest.fail("sent")
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked"))
    glm_mlx.convert(hub, tmp_path / "out")
    (tmp_path / "out" / ".DS_Store").touch()
    plan = glm_mlx.upload(tmp_path / "out", "own/out", dry_run=True)
    assert (plan.repo, plan.private, plan.address) == ("own/out", False, None)
    assert plan.files["README.md"] == len(plan.card.encode())
    assert ".DS_Store" not in plan.files
    assert "OWNER/NAME" not in plan.card


@pytest.mark.parametrize("call", [glm_mlx.verify, lambda f: glm_mlx.upload(f, "own/model")])
def test_a_folder_without_a_report_is_none_of_ours(call: Any, hub: Path) -> None:
    with pytest.raises(InputFileError, match=r"no conversion.json") as caught:
        call(hub)
    assert isinstance(caught.value, GLMError)
