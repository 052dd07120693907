"""The options that say how to quantize, in mlx-lm's spelling, and the recipe they add up to."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from glm_mlx.cli.options import Command
from glm_mlx.config import MODES
from glm_mlx.convert.recipes import Recipe, parse_size, read_overrides
from glm_mlx.errors import OptionError

_FLAGS = ("-q", "--quantize")
# What is meant as a recipe, even if it is none: a slip must not become the name of a folder.
_LIKE_A_RECIPE = re.compile(
    r"[0-9.]+[-_]?[a-z]*|q[0-9]\w*|u?int[0-9]+|(mx|nv|b)?fp?[0-9]+|mixed_\w*", re.IGNORECASE
)
_OPTIONS = {
    "bits": "--q-bits",
    "group_size": "--q-group-size",
    "mode": "--q-mode",
    "mixed": "--quant-predicate",
    "overrides": "--q-overrides",
    "embed_bits": "--embed-bits",
    "head_bits": "--head-bits",
    "target_bytes": "--target-size",
    "target_bits": "--target-bits",
}
_UNSET = Recipe()


class CommandWithRecipe(click.Command):
    """A command whose `-q` may stand alone, as in mlx-lm, or take a recipe as its word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_recipes(args))


def join_recipes(args: Sequence[str]) -> list[str]:
    """Write each `-q` with the recipe behind it, or with none, as one word."""
    joined: list[str] = []
    words = list(args)
    while words:
        word = words.pop(0)
        if word == "--":
            return [*joined, word, *words]
        if word in _FLAGS:
            recipe = words.pop(0) if words and _is_recipe(words[0]) else ""
            word = f"--quantize={recipe}"
        joined.append(word)
    return joined


def _is_recipe(word: str) -> bool:
    try:
        Recipe.parse(word)
    except OptionError:
        return _LIKE_A_RECIPE.fullmatch(word) is not None and not os.path.lexists(word)
    return True


def width(value: str) -> int | str:
    """Option type: a number of bits, or `none`."""
    if value == "none":
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number of bits nor none") from None


def recipe_options(command: Command) -> Command:
    """Add the options; the command receives `recipe: Recipe | None`, None where none was given."""

    @click.option(
        "-q",
        "--quantize",
        is_flag=False,
        flag_value="",
        metavar="[RECIPE]",
        help="Quantize: 4bit (if no RECIPE is given), 8bit, mxfp4, mixed_4_6, 4.6bit, 5GB ...",
    )
    @click.option("--q-bits", type=int, help="Bits a weight: 2, 3, 4, 5, 6 or 8.  [default: 4]")
    @click.option(
        "--q-group-size", type=int, help="Weights that share a scale: 32, 64 or 128.  [default: 64]"
    )
    @click.option("--q-mode", type=click.Choice(list(MODES)), help="Format.  [default: affine]")
    @click.option(
        "--quant-predicate", metavar="MIXED", help="mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6."
    )
    @click.option(
        "--q-overrides",
        type=Path,
        metavar="FILE",
        help='JSON object of exceptions: {"*.down_proj": {"bits": 6}, "lm_head": false}.',
    )
    @click.option("--embed-bits", type=width, metavar="N|none", help="Bits of the embedding.")
    @click.option("--head-bits", type=width, metavar="N|none", help="Bits of the output head.")
    @click.option(
        "--target-size", metavar="SIZE", help="Choose bits by measured error: tensors of 5GB ..."
    )
    @click.option(
        "--target-bits", type=float, help="Choose bits by measured error to this mean, such as 4.6."
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        quantize: str | None,
        q_bits: int | None,
        q_group_size: int | None,
        q_mode: str | None,
        quant_predicate: str | None,
        q_overrides: Path | None,
        embed_bits: int | str | None,
        head_bits: int | str | None,
        target_size: str | None,
        target_bits: float | None,
        **others: Any,
    ) -> Any:
        given = {
            "bits": q_bits,
            "group_size": q_group_size,
            "mode": q_mode,
            "mixed": quant_predicate,
            "overrides": None if q_overrides is None else read_overrides(q_overrides),
            "embed_bits": embed_bits,
            "head_bits": head_bits,
            "target_bytes": None if target_size is None else parse_size(target_size),
            "target_bits": target_bits,
        }
        given = {name: value for name, value in given.items() if value is not None}
        recipe = None if quantize is None and not given else _join(quantize or "", given)
        return command(*args, recipe=recipe, **others)

    return wrapped


def _join(shorthand: str, given: dict[str, Any]) -> Recipe:
    """Return the recipe of `-q SHORTHAND` and the other options, which may only add to it."""
    if not shorthand:
        return Recipe(**given)
    recipe = Recipe.parse(shorthand)
    for name, value in given.items():
        said = getattr(recipe, name)
        if said not in (getattr(_UNSET, name), value):
            raise click.UsageError(
                f"--quantize {shorthand} and {_OPTIONS[name]} {value} contradict each other"
            )
    return replace(recipe, **given)
