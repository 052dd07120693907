"""`-q` and its like: which word belongs to it, and which recipe the options add up to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from glm_mlx.cli.recipe import CommandWithRecipe, join_recipes, recipe_options
from glm_mlx.convert.recipes import Recipe
from glm_mlx.errors import OptionError

FLAGS = ("-q", "--quantize")


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        (["-q"], ["--quantize="]),
        (["-q", "8bit", "src"], ["--quantize=8bit", "src"]),
        (["src", "--quantize", "mixed_4_6", "out"], ["src", "--quantize=mixed_4_6", "out"]),
        (["-q", "src", "out"], ["--quantize=", "src", "out"]),
        (["-q", "THUDM/GLM-4-9B-0414"], ["--quantize=", "THUDM/GLM-4-9B-0414"]),
        (["-q", "--q-bits", "8"], ["--quantize=", "--q-bits", "8"]),
        (["--hf-path", "src", "-q", "--mlx-path", "out"],
         ["--hf-path", "src", "--quantize=", "--mlx-path", "out"]),
        (["-q", "5GB", "src"], ["--quantize=5GB", "src"]),
        (["--quantize=3bit", "src"], ["--quantize=3bit", "src"]),
        (["--", "-q", "8bit"], ["--", "-q", "8bit"]),
    ],
)  # fmt: skip
def test_the_word_behind_is_taken_if_it_is_a_recipe(words: list[str], joined: list[str]) -> None:
    assert join_recipes(words) == joined


@pytest.mark.parametrize("slip", ["3bitt", "4", "4-bit", "q4_0", "int4", "fp8", "mxfp5", "mixed_9"])
def test_a_slip_is_taken_as_a_recipe_too(
    slip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped recipe must not become the name of a folder."""
    monkeypatch.chdir(tmp_path)
    assert join_recipes(["src", "-q", slip]) == ["src", f"--quantize={slip}"]
    with pytest.raises(OptionError, match=r"recipe .* is unknown"):
        recipe_of("-q", slip)
    (tmp_path / slip).mkdir()
    assert join_recipes(["-q", slip, "out"]) == ["--quantize=", slip, "out"]


@given(st.lists(st.text().filter(lambda word: word not in (*FLAGS, "--"))))
def test_without_the_flag_nothing_changes(words: list[str]) -> None:
    assert join_recipes(words) == words


def recipe_of(*words: str, env: dict[str, str] | None = None) -> Recipe | None:
    """The recipe a command receives; its errors are raised."""
    received: list[Recipe | None] = []

    @click.command(cls=CommandWithRecipe, context_settings={"auto_envvar_prefix": "X"})
    @recipe_options
    def command(recipe: Recipe | None) -> None:
        received.append(recipe)

    CliRunner().invoke(command, words, env=env, catch_exceptions=False, standalone_mode=False)
    return received[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), None),
        (("-q",), Recipe()),
        (("-q", "8bit"), Recipe(bits=8)),
        (("-q", "4bit", "--q-bits", "4", "--q-group-size", "32"), Recipe(bits=4, group_size=32)),
        (("-q", "--q-mode", "mxfp4"), Recipe(mode="mxfp4")),
        (("-q", "mxfp4", "--q-mode", "mxfp4"), Recipe(mode="mxfp4")),
        (("--q-bits", "6"), Recipe(bits=6)),
        (("--quant-predicate", "mixed_3_6"), Recipe(mixed="mixed_3_6")),
        (("--embed-bits", "none", "--head-bits", "8"), Recipe(embed_bits="none", head_bits=8)),
        (("--target-size", "5GB"), Recipe(target_bytes=5 * 10**9)),
        (("-q", "--target-bits", "4.6"), Recipe(target_bits=4.6)),
    ],
)
def test_options_add_up(words: tuple[str, ...], expected: Recipe | None) -> None:
    assert recipe_of(*words) == expected


def test_a_variable_says_the_same() -> None:
    assert recipe_of(env={"X_QUANTIZE": "8bit", "X_HEAD_BITS": "none"}) == Recipe(
        bits=8, head_bits="none"
    )


def test_overrides_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "overrides.json"
    file.write_text('{"*.down_proj": {"bits": 6}, "lm_head": false}')
    expected = Recipe(overrides={"*.down_proj": {"bits": 6}, "lm_head": False})
    assert recipe_of("--q-overrides", str(file)) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-q", "4bit", "--q-bits", "8"), "--quantize 4bit and --q-bits 8 contradict each other"),
        (("-q", "mxfp4", "--q-mode", "nvfp4"), "mxfp4 and --q-mode nvfp4 contradict"),
        (("-q", "5GB", "--target-size", "6GB"), "--quantize 5GB and --target-size"),
        (
            ("-q", "4bit", "--quant-predicate", "mixed_4_6"),
            "bits and mixed recipe exclude each other",
        ),
        (("--target-size", "5GB", "--target-bits", "4"), "exclude each other"),
        (("--target-size", "5"), "write it like 5GB"),
        (("--q-bits", "7"), "bits 7 is not supported; use"),
        (("--q-group-size", "48"), "group size 48 is not supported; use 32, 64 or 128"),
        (("--q-mode", "mxfp4", "--q-bits", "8"), "bits 8 is not supported with mode mxfp4"),
        (("--embed-bits", "some"), "neither a number of bits nor none"),
    ],
)
def test_contradictions_are_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises((OptionError, click.UsageError)) as caught:
        recipe_of(*words)
    error: Any = caught.value
    assert said in (error.format_message() if isinstance(error, click.UsageError) else str(error))
