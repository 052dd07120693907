"""`upload`: what goes to the Hub, or would, and nothing that is no finished conversion."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from makers.folders import FolderMaker

from glm_mlx import convert

Run = Callable[..., Result]
Refused = Callable[..., str]
REPO = "own/model"


@pytest.fixture
def folder(make_folder: FolderMaker, tmp_path: Path) -> Path:
    source = make_folder("glm4")
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    convert(source, tmp_path / "result", quantize="8bit")
    return tmp_path / "result"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def send(folder: Path, repo: str, **options: Any) -> str:
        calls.append(options | {"folder": folder, "repo": repo})
        return f"https://huggingface.co/{repo}"

    monkeypatch.setattr(import_module("glm_mlx.api.convert"), "send", send)
    return calls


@pytest.mark.parametrize("private", [False, True])
def test_a_folder_is_sent_with_a_card_that_names_its_place(
    run: Run, folder: Path, sent: list[dict[str, Any]], private: bool
) -> None:
    before = (folder / "README.md").read_bytes()
    result = run("upload", str(folder), REPO, *(["--private"] if private else []))
    assert result.stdout == f"https://huggingface.co/{REPO}\n"
    (call,) = sent
    assert (call["folder"], call["repo"], call["private"]) == (folder, REPO, private)
    assert set(call["files"]) == {path.name for path in folder.iterdir()}
    assert f"glm-mlx generate --model {REPO}" in call["card"]
    assert "\nlicense: mit\n" in call["card"]
    assert (folder / "README.md").read_bytes() == before


def test_a_dry_run_prints_all_and_sends_nothing(
    run: Run, folder: Path, sent: list[dict[str, Any]]
) -> None:
    result = run("upload", str(folder), REPO, "--dry-run")
    assert (result.exit_code, sent) == (0, [])
    listing, card = result.stdout.split("\n\n", 1)
    sizes = {name: int(n.replace(",", "")) for n, _, name in map(str.split, listing.splitlines())}
    assert sizes.pop("README.md") == len(card.encode())
    assert sizes == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != "README.md"
    }
    found = json.loads(run("upload", str(folder), REPO, "--dry-run", "--json").stdout)
    assert found["card"] == card
    assert found["address"] is None
    assert sent == []


def test_words_of_ones_own_stay_in_the_card(
    run: Run, folder: Path, sent: list[dict[str, Any]]
) -> None:
    card = (folder / "README.md").read_text() + "\nMeasured on my desk.\n"
    (folder / "README.md").write_text(card)
    run("upload", str(folder), REPO)
    assert sent[0]["card"].endswith("\nMeasured on my desk.\n")


def test_what_is_no_finished_conversion_stays_here(
    refused: Refused, folder: Path, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert "no such folder" in refused("upload", str(tmp_path / "absent"), REPO, code=3)
    assert "not a finished conversion" in refused("upload", str(tmp_path), REPO, code=3)
    assert "is not owner/name" in refused("upload", str(folder), "model", code=2)
    (folder / "README.md").rename(tmp_path / "README.md")
    assert "README.md is missing" in refused("upload", str(folder), REPO, code=3)
    (folder / "model.safetensors").unlink()
    assert "'model.safetensors' is missing" in refused("upload", str(folder), REPO, code=3)
    assert sent == []


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_what_was_damaged_since_it_was_made_stays_here(
    refused: Refused, folder: Path, sent: list[dict[str, Any]], name: str, dry_run: list[str]
) -> None:
    damaged = bytearray((folder / name).read_bytes())
    damaged[-2] ^= 1
    (folder / name).write_bytes(damaged)
    line = refused("upload", str(folder), REPO, *dry_run, code=3)
    assert f"{folder / name}: its sha256 is not the one in checksums.json" in line
    assert sent == []


def test_a_folder_without_hashes_and_a_card_that_is_none_stay_here(
    refused: Refused, folder: Path, sent: list[dict[str, Any]]
) -> None:
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")
    assert "README.md: is a special file" in refused("upload", str(folder), REPO, code=3)
    (folder / "checksums.json").unlink()
    assert "checksums.json is missing" in refused("upload", str(folder), REPO, code=3)
    assert sent == []
