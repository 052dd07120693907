"""How the program starts and how it ends: help, exit codes, one line an error."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import Result

from glm_mlx import errors
from glm_mlx.cli import main
from glm_mlx.errors import ConfigError, GLMError, GLMWarning

Run = Callable[..., Result]

ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.GLMError)
]


def commands() -> dict[str, click.Command]:
    context = click.Context(main)
    return {name: main.get_command(context, name) for name in main.list_commands(context)}  # type: ignore[misc]


def failing(error: BaseException) -> Callable[[int], None]:
    def fail(number: int) -> None:
        raise error

    return fail


def test_the_table_of_commands_repeats_their_own_help() -> None:
    found = commands()
    listing = click.Context(main, **main.context_settings).get_help()
    for name, command in found.items():
        assert command.name == name
        assert re.search(rf"^  {name} +{re.escape(command.get_short_help_str(80))}$", listing, re.M)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_is_what_a_newcomer_gets(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: glm-mlx [OPTIONS] COMMAND")


def test_version(run: Run) -> None:
    assert re.fullmatch(r"glm-mlx \d+\.\d+\.\d+\n", run("--version").stdout)


@pytest.mark.parametrize("value", ["1", "0.1.0"])
def test_no_variable_asks_for_the_version(run: Run, fake_glm: Any, value: str) -> None:
    result = run("generate", "-p", "Hi", env={"GLM_MLX_VERSION": value})
    assert (result.exit_code, result.stdout) == (0, "Hello there\n")


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_and_debug(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "--debug" in result.stdout


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_one_line_and_its_exit_code(
    run: Run, fake_glm: Any, kind: type[GLMError]
) -> None:
    fake_glm.before_piece = failing(kind("first\nsecond \x1b[31m", file="a/b.json", hint="do so"))
    result = run("generate", "-p", "Hi", "--model", "m")
    assert result.exit_code == kind.exit_code
    assert result.stdout == ""
    assert result.stderr == "glm-mlx: error: a/b.json: first second \\x1b[31m (do so)\n"
    assert fake_glm.closed


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("odd"), 1, "internal error: ValueError: odd; run again with --debug"),
        (RecursionError("deep"), 1, "internal error: RecursionError: deep"),
        (MemoryError(), 4, "out of memory"),
    ],
)
def test_an_unforeseen_error_says_so(
    run: Run, fake_glm: Any, error: Exception, code: int, line: str
) -> None:
    fake_glm.before_piece = failing(error)
    result = run("generate", "-p", "Hi", "--model", "m")
    assert result.exit_code == code
    assert result.stderr.startswith(f"glm-mlx: error: {line}")
    assert result.stderr.count("\n") == 1


def test_a_keyboard_interrupt_says_nothing(run: Run, fake_glm: Any) -> None:
    fake_glm.before_piece = failing(KeyboardInterrupt())
    result = run("generate", "-p", "Hi", "--model", "m")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (("--debug", "generate", "-p", "Hi", "--model", "m"), {}),
        (("generate", "-p", "Hi", "--model", "m", "--debug"), {}),
        (("generate", "-p", "Hi", "--model", "m"), {"GLM_MLX_DEBUG": "1"}),
        (("generate", "-p", "Hi", "--model", "m"), {"GLM_MLX_GENERATE_DEBUG": "1"}),
    ],
)
def test_debug_shows_the_traceback(
    run: Run, fake_glm: Any, arguments: tuple[str, ...], env: dict[str, str]
) -> None:
    fake_glm.before_piece = failing(ConfigError("bad"))
    result = run(*arguments, env=env)
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "in fail\n" in result.stderr
    assert result.stderr.endswith("\nglm-mlx: error: bad\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("genrate",),
        ("--nope",),
        ("generate", "--nope"),
        ("generate", "stray"),
        ("generate", "--max-tokens"),
        ("chat", "--temp", "warm"),
    ],
)
def test_wrong_usage_is_one_line_that_leads_to_help(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch(r"glm-mlx: error: .* \(see glm-mlx.* --help\)\n", result.stderr)


def test_a_warning_is_one_line(run: Run, fake_glm: Any) -> None:
    before = warnings.showwarning
    fake_glm.before_piece = lambda _: warnings.warn("odd\nvalue", GLMWarning, stacklevel=1)
    result = run("generate", "-p", "Hi", "--model", "m")
    assert result.exit_code == 0
    assert result.stderr == "glm-mlx: warning: odd value\n"
    assert warnings.showwarning is before


def test_every_option_is_an_environment_variable_too(run: Run, fake_glm: Any) -> None:
    values = {
        "PROMPT": "Hi",
        "MODEL": "m",
        "MAX_TOKENS": "9",
        "TEMP": "0.5",
        "STOP": " I  am\n",
        "LOGIT_BIAS": "3=-1 4=2",
        "SYSTEM_PROMPT": "Be brief",
        "JSON": "1",
    }
    result = run("generate", env={f"GLM_MLX_GENERATE_{key}": text for key, text in values.items()})
    assert result.stdout.startswith("{")
    [(messages, options)] = fake_glm.asked
    assert [message["content"] for message in messages] == ["Be brief", "Hi"]
    assert options["max_tokens"] == 9
    assert options["temperature"] == 0.5
    assert options["stop"] == (" I  am\n",)
    assert options["logit_bias"] == {3: -1.0, 4: 2.0}


def test_an_option_and_its_variable_share_a_name() -> None:
    for command in commands().values():
        for option in command.params:
            spelling = max(option.opts, key=len)
            assert option.name == spelling.removeprefix("--").replace("-", "_")


def test_shell_completion_is_clicks_own(start: Callable[..., Any]) -> None:
    words = {"COMP_WORDS": "glm-mlx ch", "COMP_CWORD": "1", "_GLM_MLX_COMPLETE": "bash_complete"}
    out, _ = start(env=os.environ | words).communicate(timeout=20)
    assert out.split() == [b"plain,chat"]
