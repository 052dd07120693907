"""Imports go down the floors only, and an outside package enters by its own door.

The two tables below are the architecture; a new room or a new dependency is a line here first.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "glm_mlx"
BESIDE = {"convert"}  # rooms whose folder stands beside the package, linked into it

# From the ground up. A file imports its own room and rooms on lower floors, never a neighbour.
FLOORS = (
    {"errors"},
    {"jsonfile", "modelfile"},
    {"config", "hub", "checkpoint", "text", "nano"},
    {"model"},
    {"load", "generate"},
    {"convert"},
    {"api"},
    {"cli"},
    {"", "__main__"},  # the roof: the package itself
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# Outside package -> the rooms that may import it; "*" is every room. What is not listed is not
# imported at all, least of all mlx_lm: a second of start, a lowered limit, changed environment.
DOORS = {
    "mlx": "*",
    "numpy": "*",
    "huggingface_hub": "hub",
    "tokenizers": "text",
    "jinja2": "text",
    "click": "cli",
}


class Import(NamedTuple):
    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.imported}"


def module_name(path: Path) -> str:
    """`glm_mlx/text/__init__.py` -> `glm_mlx.text`, `convert/plan.py` -> `glm_mlx.convert.plan`."""
    parts = path.with_suffix("").parts
    parts = (PACKAGE, *parts) if parts[0] in BESIDE else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """`glm_mlx.text.tokenizer` -> `text`; the package itself is ""."""
    return f"{module}.".split(".")[1]


def imports_of(source: str, importer: str, *, is_package: bool) -> Iterator[Import]:
    """Yield what a module imports, relative names resolved, wherever the statement stands.

    `from a import b` yields `a.b`, since `b` may be a module; both readings share a room.
    """
    package = importer.split(".") if is_package else importer.split(".")[:-1]

    def above(dots: int) -> list[str]:
        return package[: len(package) - dots + 1] if dots else []

    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                base = above(node.level) + (node.module.split(".") if node.module else [])
                names = [".".join([*base, alias.name]) for alias in node.names]
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                dots = len(name) - len(name.lstrip("."))
                names = [".".join([*above(dots), name[dots:]])]
            case _:
                continue
        yield from (Import(importer, name, node.lineno) for name in names)


@pytest.fixture(scope="module")
def modules(repository: Path, tracked: list[Path]) -> list[Path]:
    return [
        path for path in tracked if path.parts[0] in {PACKAGE, *BESIDE} and path.suffix == ".py"
    ]


@pytest.fixture(scope="module")
def imports(repository: Path, modules: list[Path]) -> list[Import]:
    return [
        found
        for path in modules
        for found in imports_of(
            (repository / path).read_text(encoding="utf-8"),
            module_name(path),
            is_package=path.name == "__init__.py",
        )
    ]


def test_every_room_has_its_floor(modules: list[Path]) -> None:
    assert {room(module_name(path)) for path in modules} == FLOOR_OF.keys()


def test_imports_go_down(imports: list[Import]) -> None:
    inner = [found for found in imports if found.imported.split(".")[0] == PACKAGE]
    upward = [
        found
        for found in inner
        if (here := room(found.importer)) != (there := room_of_import(found.imported))
        and FLOOR_OF[there] >= FLOOR_OF[here]
    ]
    assert inner
    assert not upward, "\n".join(map(str, upward))


def room_of_import(imported: str) -> str:
    """The room an import reaches: `glm_mlx.load` may be a module or a public name of the roof."""
    name = room(imported)
    return name if name in FLOOR_OF else ""


def test_outside_packages_enter_by_their_door(imports: list[Import]) -> None:
    outside = [
        (found, top)
        for found in imports
        if (top := found.imported.split(".")[0]) != PACKAGE and top not in sys.stdlib_module_names
    ]
    wrong = [
        found
        for found, top in outside
        if room(found.importer) not in DOORS.get(top, "").split() and DOORS.get(top) != "*"
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert {top for _, top in outside} == DOORS.keys(), "a door nobody uses is a wall"


def test_doors_are_the_dependencies(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^\w-]", line)[0] for line in project["dependencies"]]
    assert {name.lower().replace("-", "_") for name in names} == DOORS.keys()


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import glm_mlx.api", "glm_mlx.api"),
        ("from . import loader", "glm_mlx.text.loader"),
        ("from ..api import GLM", "glm_mlx.api.GLM"),
        ("def f():\n    from glm_mlx import api", "glm_mlx.api"),
        ("class C:\n    async def f(self):\n        import mlx_lm.utils", "mlx_lm.utils"),
        ("if TYPE_CHECKING:\n    import torch", "torch"),
        ("importlib.import_module('torch.nn')", "torch.nn"),
        ("def f():\n    return import_module('..api', __package__)", "glm_mlx.api"),
    ],
)
def test_the_reader_sees_every_form_of_import(source: str, imported: str) -> None:
    (found,) = imports_of(source, "glm_mlx.text.template", is_package=False)
    assert found.imported == imported
