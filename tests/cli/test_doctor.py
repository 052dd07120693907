"""`doctor`: what works is said to work, and what does not turns the exit code."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest
from click.testing import Result

from glm_mlx.cli import doctor

Run = Callable[..., Result]


def checks(result: Result) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_a_machine_that_works(run: Run) -> None:
    result = run("doctor", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found = checks(result)
    assert {check["status"] for check in found.values()} <= {"ok", "warn"}
    assert {"python", "mlx", "tokenizers", "device", "memory", "hub cache", "reply"} <= found.keys()
    assert found["mlx"]["text"] == importlib.metadata.version("mlx")
    assert json.loads(result.stdout)["healthy"] is True


def test_a_person_reads_lines(run: Run) -> None:
    lines = run("doctor").stdout.splitlines()
    assert all(line.split()[0] in ("ok", "warn") for line in lines)
    assert len(lines) == len(checks(run("doctor", "--json")))


def test_a_missing_package_is_broken_unless_optional(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = doctor.version

    def version(name: str) -> str:
        if name in ("tokenizers", "mlx-lm"):
            raise importlib.metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(doctor, "version", version)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    found = checks(result)
    assert found["tokenizers"]["status"] == "fail"
    assert "mlx-lm" not in found


def test_a_model_that_fails_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> NoReturn:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("glm_mlx.api.load", load)
    result = run("doctor")
    assert result.exit_code == 1
    last = result.stdout.splitlines()[-1]
    assert last.startswith("fail  reply")
    assert "RuntimeError: no such kernel" in last


@pytest.mark.parametrize(
    ("folder", "found"),
    [
        ("~no such person/c", "~no such person/c names an unknown home folder"),
        (f"/{'x' * 300}", "cannot be read: File name too long"),
        ("/odd\x1b[2J\nname", r"/odd\x1b[2J\nname, holds 0 bytes"),
    ],
)
def test_an_odd_hub_cache_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, folder: str, found: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", folder)
    result = run("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    [line] = [line for line in result.stdout.splitlines() if "hub cache" in line]
    assert found in line


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"HF_HOME": "/h"},
        {"XDG_CACHE_HOME": "/x"},
        {"HF_HUB_CACHE": "/c", "HF_HOME": "/h"},
        {"HF_HUB_CACHE": "~/c"},
        {"HF_HUB_CACHE": "$HOME/c"},
        {"HF_HUB_CACHE": "~no such person/c"},
    ],
)
def test_the_hub_cache_is_where_the_hub_puts_it(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    program = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    theirs = subprocess.run(
        [sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert str(doctor._hub_folder()) == theirs
