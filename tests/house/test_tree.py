"""The files of the project: short, packaged, free of leftovers and of one person's machine."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

LINE_CAP = 400
_LEFTOVERS = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
_HOME = re.compile(r"(?<![\w.])/(?:home|Users)/\w+|(?<![\w.])/roo[t]/|\b[A-Z]:\\Users\\")
_BUILT_IN_MARKERS = {"parametrize", "usefixtures", "filterwarnings", "timeout"}


@pytest.fixture(scope="module")
def settings(repository: Path) -> dict[str, Any]:
    tools: dict[str, Any] = tomllib.loads(
        (repository / "pyproject.toml").read_text(encoding="utf-8")
    )["tool"]
    return tools


@pytest.fixture(scope="module")
def texts(repository: Path, tracked: list[Path]) -> dict[Path, str]:
    """Path -> content of every tracked file that is text."""
    found: dict[Path, str] = {}
    for path in tracked:
        data = (repository / path).read_bytes()
        if b"\0" not in data:
            found[path] = data.decode("utf-8")
    return found


def test_files_are_short(texts: dict[Path, str]) -> None:
    long = {
        str(path): lines
        for path, text in texts.items()
        if path.suffix in {".py", ".metal"} and (lines := text.count("\n")) > LINE_CAP
    }
    assert not long


def test_nothing_is_left_to_be_done(texts: dict[Path, str]) -> None:
    marks = {
        str(path): found for path, text in texts.items() if (found := _LEFTOVERS.findall(text))
    }
    assert not marks


def test_no_path_of_anyones_machine(repository: Path, texts: dict[Path, str]) -> None:
    places = [str(place) for place in (repository, Path(sys.prefix)) if len(place.parts) > 2]
    here = re.compile("|".join(rf"(?<![\w.]){re.escape(place)}\b" for place in places) or r"(?!)")
    paths = {
        str(path): found
        for path, text in texts.items()
        if (found := _HOME.findall(text) + here.findall(text))
    }
    assert not paths


def test_the_package_list_is_the_tree(settings: dict[str, Any], tracked: list[Path]) -> None:
    places = {Path(place): name for name, place in settings["setuptools"]["package-dir"].items()}
    folders = [path.parent for path in tracked if path.name == "__init__.py"]
    inside = [folder for folder in folders if places.keys() & {folder, *folder.parents}]
    names = [places.get(folder, ".".join(folder.parts)) for folder in inside]
    assert settings["setuptools"]["packages"] == sorted(names)


def test_rooms_beside_the_package_are_linked_into_it(
    settings: dict[str, Any], repository: Path
) -> None:
    """So that a bare checkout, mypy and an editor find what an install finds."""
    for name, place in settings["setuptools"]["package-dir"].items():
        link = repository.joinpath(*name.split("."))
        assert link.is_symlink() is (name != place)
        assert link.resolve() == repository / place


def test_every_data_file_ships(settings: dict[str, Any], tracked: list[Path]) -> None:
    patterns = {
        (package, pattern)
        for package, listed in settings["setuptools"]["package-data"].items()
        for pattern in listed
    }
    packages = {Path(*name.split(".")) for name in settings["setuptools"]["packages"]}
    used = set()
    for path in tracked:
        if path.parts[0] != "glm_mlx" or path.suffix == ".py":
            continue
        home = next(folder for folder in path.parents if folder in packages)
        matches = {
            (package, pattern)
            for package, pattern in patterns
            if package == ".".join(home.parts)
            and fnmatch(path.relative_to(home).as_posix(), pattern)
        }
        assert matches, f"{path} is in no package-data pattern"
        used |= matches
    assert used == patterns, "a package-data pattern matches nothing"


def test_every_marker_is_known(
    settings: dict[str, Any], repository: Path, tracked: list[Path]
) -> None:
    """A test is in a ring or in none; nothing is skipped or expected to fail."""
    listed = {line.split(":")[0] for line in settings["pytest"]["ini_options"]["markers"]}
    used = {
        (node.attr, str(path))
        for path in tracked
        if path.parts[0] == "tests" and path.suffix == ".py"
        for node in ast.walk(ast.parse((repository / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "mark"
    }
    unknown = {(name, path) for name, path in used if name not in listed | _BUILT_IN_MARKERS}
    assert not unknown
    assert listed <= {name for name, _ in used}, "a ring without a test"
