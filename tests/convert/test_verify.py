"""A verification passes what the converter wrote and names everything that is not that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers.folders import Tensors, write_folder

from glm_mlx.checkpoint import Checkpoint
from glm_mlx.convert.pipeline import convert_folder
from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.settings import Settings
from glm_mlx.convert.verify import verify_folder
from glm_mlx.errors import CheckpointError, InputFileError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "source", "chatglm")


@pytest.fixture
def result(tmp_path: Path, source: Path) -> Path:
    settings = Settings(source_name="tiny", recipe=Recipe(bits=4))
    convert_folder(source, tmp_path / "result", settings)
    return tmp_path / "result"


def flip(folder: Path, tensor: str, *, sign_manifest: bool) -> None:
    """Change one byte of a tensor, and the checksum with it if the change should pass that."""
    info = Checkpoint.open(folder).tensors[tensor]
    data = bytearray(info.file.read_bytes())
    data[info.start] ^= 1
    info.file.write_bytes(data)
    if sign_manifest:
        manifest = folder / "checksums.json"
        content = json.loads(manifest.read_text())
        content["files"][info.file.name] = hashlib.sha256(data).hexdigest()
        manifest.write_text(json.dumps(content))


@pytest.mark.parametrize("full", [False, True])
def test_a_conversion_passes(source: Path, result: Path, full: bool) -> None:
    verification = verify_folder(result, source, full=full)
    assert verification.findings == ()
    assert 0 < verification.compared_bytes <= verification.total_bytes
    assert bool(verification.errors) is full


def test_a_changed_byte_breaks_the_checksum(source: Path, result: Path) -> None:
    flip(result, "lm_head.scales", sign_manifest=False)
    with pytest.raises(CheckpointError, match="sha256"):
        verify_folder(result, source)


def test_a_changed_byte_is_found_behind_a_fitting_checksum(source: Path, result: Path) -> None:
    flip(result, "lm_head.scales", sign_manifest=True)
    (finding,) = verify_folder(result, source, full=True).findings
    assert finding.startswith("tensor lm_head.scales: rows 0 to")


def edit_json(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def sign(folder: Path, name: str) -> None:
    """Write the file's hash into the manifest, as somebody would who wants the change to pass."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit_json(folder, "checksums.json", lambda manifest: manifest["files"].update({name: digest}))


@pytest.mark.parametrize("signed", [False, True], ids=["", "signed"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", lambda data: data.update(rms_norm_eps=0.1)),
        ("config.json", lambda data: data.update(model_file="evil.py")),
        ("tokenizer_config.json", lambda data: data.update(clean_up_tokenization_spaces=True)),
        ("generation_config.json", lambda data: data.update(temperature=2)),
        ("model.safetensors.index.json", lambda data: data["metadata"].update(total_size=1)),
        ("conversion.json", lambda data: data["tensors"].pop()),
        ("conversion.json", lambda data: data["tensors"][0].update(stored="bf16")),
    ],
)
def test_an_edited_file_is_found(
    source: Path, result: Path, name: str, change: Callable[[Any], object], signed: bool
) -> None:
    edit_json(result, name, change)
    if signed:
        sign(result, name)
    findings = verify_folder(result, source).findings
    assert findings
    assert all(name in finding for finding in findings)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "generation_config.json", "model.safetensors.index.json"]
)
def test_a_missing_file_is_found(source: Path, result: Path, name: str) -> None:
    (result / name).unlink()
    findings = verify_folder(result, source).findings
    assert f"file {name} is missing" in findings


def test_a_file_of_somebody_else_is_found_and_the_card_is_the_users(
    source: Path, result: Path
) -> None:
    (result / "README.md").write_text("my own words")
    (result / ".DS_Store").touch()
    assert verify_folder(result, source).findings == ()
    (result / "evil.py").touch()
    assert verify_folder(result, source).findings == ("file evil.py is not of the conversion",)


def test_another_source_is_found(tmp_path: Path, result: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["transformer.output_layer.weight"][0, 0] += 1

    other = write_folder(tmp_path / "other", "chatglm", edit_tensors=change)
    findings = verify_folder(result, other, full=True).findings
    assert findings
    assert all("lm_head" in finding for finding in findings)


def test_the_measured_errors_are_those_of_the_report(source: Path, result: Path) -> None:
    verification = verify_folder(result, source, full=True)
    report = json.loads((result / "conversion.json").read_text())
    for tensor in report["tensors"]:
        exact = verification.errors[tensor["name"]]
        assert tensor["relative_error"] == pytest.approx(exact, rel=0.1)


def test_a_folder_without_a_report_cannot_be_verified(source: Path) -> None:
    with pytest.raises(InputFileError, match=r"conversion\.json"):
        verify_folder(source, source)
