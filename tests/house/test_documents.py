"""The documents say what the code does: commands, targets, options, errors, examples, links."""

from __future__ import annotations

import inspect
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from glm_mlx import errors

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
_TARGET = re.compile(r"^([a-z][\w-]*):", re.MULTILINE)


@pytest.fixture(scope="module")
def documents(repository: Path, tracked: list[Path]) -> dict[str, str]:
    """Every markdown page that a reader meets: name -> text."""
    return {
        path.as_posix(): (repository / path).read_text(encoding="utf-8")
        for path in tracked
        if path.suffix == ".md" and path.parts[0] not in {"tests", "glm_mlx"}
    }


def blocks(text: str, language: str) -> list[str]:
    return [code for name, code in _FENCE.findall(text) if name == language]


def shell_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of the `sh` blocks, comments and redirections dropped."""
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"\s(?:\||&&)\s", line):
                words = shlex.split(command, comments=True)
                if words:
                    yield words


def test_commands_of_the_documents_exist(documents: dict[str, str], repository: Path) -> None:
    """Every `make` target is in the Makefile; every `glm-mlx` command line can be parsed."""
    targets = set(_TARGET.findall((repository / "Makefile").read_text(encoding="utf-8")))
    commands = [words for text in documents.values() for words in shell_commands(text)]
    made = {target for name, *rest in commands if name == "make" for target in rest}
    assert {"hello", "test"} <= {name for name in made if "=" not in name} <= targets
    ours = [rest for name, *rest in commands if name == "glm-mlx"]
    assert ours
    for arguments in ours:
        parse(arguments)


def parse(arguments: list[str]) -> None:
    """Parse a command line as the program would, without running it."""
    from glm_mlx.cli import main

    root = click.Context(main, info_name="glm-mlx", **main.context_settings)
    main.parse_args(root, list(arguments[:1]))
    command = main.get_command(root, arguments[0])
    assert command is not None, arguments
    command.make_context(arguments[0], arguments[1:], parent=root)


def test_the_readme_opens_with_the_two_commands(documents: dict[str, str]) -> None:
    first = blocks(documents["README.md"], "sh")[0]
    assert [words[:2] for words in shell_commands(f"```sh\n{first}```")][-2:] == [
        ["make", "hello"],
        ["make", "test"],
    ]


def test_the_machines_run_the_readme_command(repository: Path) -> None:
    assert "\nmake test\n" in (repository / ".ci" / "run").read_text(encoding="utf-8")


def test_links_lead_somewhere(documents: dict[str, str], repository: Path) -> None:
    dead = [
        (name, target)
        for name, text in documents.items()
        for target in _LINK.findall(text)
        if "://" not in target and not (repository / name).parent.joinpath(target).exists()
    ]
    assert not dead


def test_cli_page_is_what_the_commands_say(documents: dict[str, str], repository: Path) -> None:
    page = runpy.run_path(str(repository / "docs" / "generate_cli.py"))["page"]
    assert documents["docs/cli.md"] == page(), "run `make docs`"


def test_error_page_is_the_error_tree(documents: dict[str, str]) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \| (\d+) \| (.*) \|$", documents["docs/errors.md"], re.M
    )
    tree = [
        (name, ", ".join(f"`{base.__name__}`" for base in kind.__bases__), kind.exit_code, summary)
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.GLMError)
        for summary in [(kind.__doc__ or "").splitlines()[0]]
    ]
    assert sorted((a, b, int(code), d) for a, b, code, d in rows) == sorted(tree)


@pytest.mark.parametrize(
    "name", ["README.md", "docs/python.md", "docs/errors.md", "docs/converting.md"]
)
def test_python_of_the_documents_runs(
    name: str, documents: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The blocks of a page run from top to bottom as one program, on the embedded model."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "document"}
    programs = blocks(documents[name], "python")
    assert programs
    for program in programs:
        exec(compile(program, name, "exec"), names)
    for value in names.values():
        if hasattr(value, "close"):
            value.close()
