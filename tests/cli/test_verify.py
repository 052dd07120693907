"""`verify`: what is compared with what, and how a difference is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from makers.folders import FolderMaker

from glm_mlx import Recipe, Verification, convert

Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture
def source(make_folder: FolderMaker) -> Path:
    return make_folder("chatglm")


@pytest.fixture
def result(source: Path, tmp_path: Path) -> Path:
    convert(source, tmp_path / "result", quantize=Recipe(bits=4))
    return tmp_path / "result"


@pytest.mark.parametrize("full", [False, True])
def test_a_sound_folder(run: Run, source: Path, result: Path, full: bool) -> None:
    words = ("verify", str(result), "--source", str(source), *(["--full"] if full else []))
    found = run(*words)
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout.endswith("\nall is as the source gives it\n")
    assert ("largest relative error" in found.stdout) is full
    *progress, done = [json.loads(line) for line in run(*words, "--json").stdout.splitlines()]
    assert (done["event"], done["folder"]) == ("done", str(result))
    assert done["verification"]["full"] is full
    assert done["verification"]["findings"] == []
    assert {"event", "stage", "done_bytes", "bytes_per_second"} <= progress[-1].keys()


def forge(folder: Path) -> None:
    """Change a weight, and every hash so that it fits."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    before = hashlib.sha256(data).hexdigest()
    data[-1] ^= 1
    file.write_bytes(data)
    for name in ("checksums.json", "conversion.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace(before, hashlib.sha256(data).hexdigest()))


def test_a_difference_is_an_error_that_names_the_tensor(
    run: Run, source: Path, result: Path
) -> None:
    forge(result)
    for words in ((), ("--json",)):
        found = run("verify", str(result), "--source", str(source), "--full", *words)
        assert found.exit_code == 3
        (line,) = found.stderr.splitlines()
        assert line.startswith(f"glm-mlx: error: {result}: differs from its source: ")
        assert "tensor model.layers." in found.stdout
    assert json.loads(found.stdout.splitlines()[-1])["verification"]["findings"]


def test_many_findings_are_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = tuple(f"tensor {number}" for number in range(8))
    monkeypatch.setattr(
        import_module("glm_mlx.cli.verify"),
        "verify_model",
        lambda *_, **__: Verification(False, 8, 1, 1, findings),
    )
    found = run("verify", "folder")
    assert found.stderr.endswith("tensor 3; tensor 4 and 3 more\n")
    assert all(finding in found.stdout for finding in findings)


def test_the_source_is_what_the_report_names(
    run: Run, refused: Refused, result: Path, monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    said = refused("verify", str(result), code=2)
    assert f"was converted from a folder called {source.name!r}" in said
    report = json.loads((result / "conversion.json").read_text())
    from_hub = json.dumps(report | {"source": "own/model", "revision": "a" * 40})
    (result / "conversion.json").write_text(from_hub)
    manifest = json.loads((result / "checksums.json").read_text())
    manifest["files"]["conversion.json"] = hashlib.sha256(from_hub.encode()).hexdigest()
    (result / "checksums.json").write_text(json.dumps(manifest))
    asked: list[Any] = []

    def resolve(name: Any, *, revision: str | None = None) -> Path:
        asked.append((str(name), revision))
        return source if name == "own/model" else Path(name)

    monkeypatch.setattr(import_module("glm_mlx.api.convert"), "resolve", resolve)
    assert run("verify", str(result)).exit_code == 0
    assert asked == [(str(result), None), ("own/model", "a" * 40)]


@pytest.mark.parametrize(
    ("words", "said"),
    [(("absent",), "no such folder"), ((".", "--source", "."), "conversion.json")],
)
def test_what_cannot_be_verified(
    refused: Refused,
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused("verify", *words, code=3)
