"""What `import glm_mlx` gives and what it costs: names, modules, and no change to the process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import glm_mlx

# Third-party packages that may come in with each start, and nothing else. The public names are
# bound when the package is imported: bound later, `glm_mlx.load` would be hidden by its module.
ALWAYS = {"glm_mlx", "mlx", "tokenizers", "jinja2", "markupsafe"}
ALLOWED = {
    "import glm_mlx": ALWAYS,
    "from glm_mlx.cli import main": ALWAYS | {"click"},
    "import sys, runpy; sys.argv[1:] = ['--help']; runpy.run_module('glm_mlx')": ALWAYS | {"click"},
}

_LIST_MODULES = """
import sys
before = set(sys.modules)
try:
    {statement}
except SystemExit as stop:
    assert not stop.code, stop.code
tops = {{name.split(".")[0] for name in set(sys.modules) - before}}
print()
print(*sorted(top for top in tops if top not in sys.stdlib_module_names))
"""

# Imports the outside packages first, so that only our own changes to the process are seen.
_LIST_CHANGES = """
import importlib, json, locale, logging, os, pkgutil, resource, signal, sys, threading, warnings
{first}

def state():
    return {{
        "limits": [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_STACK)],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "logging": [repr(logging.root.handlers), logging.root.level, logging.root.disabled],
        "signals": [repr(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
        "warnings": [repr(entry) for entry in warnings.filters],
        "warn": repr(warnings.showwarning),
        "hooks": [repr(sys.excepthook), repr(threading.excepthook), repr(sys.meta_path)],
        "threads": [thread.name for thread in threading.enumerate()],
        "locale": locale.setlocale(locale.LC_ALL),
    }}

before = state()
{then}
after = state()
print(json.dumps({{key: [before[key], after[key]] for key in before if before[key] != after[key]}}))
"""
_EVERY_MODULE = """
import glm_mlx
for found in pkgutil.walk_packages(glm_mlx.__path__, "glm_mlx."):
    if found.name != "glm_mlx.__main__":
        importlib.import_module(found.name)
"""


def run_python(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    return result.stdout


@pytest.mark.parametrize("statement", ALLOWED)
def test_a_start_is_light(statement: str) -> None:
    modules = run_python(_LIST_MODULES.format(statement=statement)).splitlines()[-1].split()
    assert set(modules) - {"_cython", "mypyc"} <= ALLOWED[statement]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("", "import glm_mlx, glm_mlx.cli"),
        (
            "import mlx.core, numpy, huggingface_hub, safetensors, tokenizers, jinja2, click, rich",
            _EVERY_MODULE,
        ),
    ],
    ids=["start", "every module"],
)
def test_importing_changes_nothing(first: str, then: str) -> None:
    assert json.loads(run_python(_LIST_CHANGES.format(first=first, then=then))) == {}


def test_exports_are_sorted_and_there() -> None:
    assert glm_mlx.__all__ == sorted(set(glm_mlx.__all__))
    assert [name for name in glm_mlx.__all__ if not hasattr(glm_mlx, name)] == []


def test_no_module_hides_a_public_name() -> None:
    """`glm_mlx.load` is a function and a module; importing the module must not undo the name."""
    prelude = "import importlib, pkgutil, types\n" + _EVERY_MODULE
    listing = "[n for n in glm_mlx.__all__ if isinstance(getattr(glm_mlx, n), types.ModuleType)]"
    assert run_python(f"{prelude}\nprint({listing})").strip() == "[]"


def test_every_public_name_is_exported() -> None:
    """`errors` and its like are modules; everything else without an underscore is public."""
    public = {
        name
        for name in dir(glm_mlx)
        if not name.startswith("_")
        and name != "annotations"  # what `from __future__ import annotations` leaves behind
        and not isinstance(getattr(glm_mlx, name), ModuleType)
    }
    assert public == set(glm_mlx.__all__) - {"__version__"}


def test_public_modules_list_what_they_define(repository: Path) -> None:
    """An `__all__` anywhere in the package is sorted and names only what exists."""
    for path in sorted((repository / "glm_mlx").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            match node:
                case ast.Assign(targets=[ast.Name(id="__all__")]):
                    listed = ast.literal_eval(node.value)
                    assert listed == sorted(set(listed)), path
