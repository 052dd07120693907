"""Options that several commands share, and how their values become arguments of the API.

Spellings are those of mlx-lm. Ranges are the API's own; here is only what a command line can get
wrong by itself.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glm_mlx.cli import terminal

if TYPE_CHECKING:
    from glm_mlx.api import GLM

Command = Callable[..., Any]

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)


class Text(click.types.StringParamType):
    """Option type: text, where the shell may hand over bytes that are none.

    The value of an environment variable is one text, spaces and all, even if the option can be
    given several times.
    """

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            position = len(value[: error.start].encode())
            raise click.BadParameter(f"not UTF-8 at byte {position:,}") from error
        return value

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


def json_object(value: str) -> dict[str, Any]:
    """Option type: a JSON object."""
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise click.BadParameter('not a JSON object, such as {"key": true}')
    return parsed


def token_bias(value: str) -> tuple[int, float]:
    """Option type: `ID=VALUE`."""
    token, _, bias = value.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a token id and a number, such as 198=-5"
        ) from None


@dataclass(frozen=True)
class ModelChoice:
    """The model a command was asked to use.

    Attributes:
        name: folder or Hub id; None is the embedded model.
        revision: branch, tag or commit on the Hub.
        rope: settings laid over the config's, or None.
        trust_config: take doubtful config values at their word.
    """

    name: str | None
    revision: str | None
    rope: dict[str, object] | None
    trust_config: bool

    @property
    def label(self) -> str:
        """How to call the model where a person reads it."""
        return self.name or "the embedded model"

    def load(self) -> GLM:
        """Load it; close what this returns."""
        from glm_mlx.api import load

        self.announce()
        return load(
            self.name, revision=self.revision, rope=self.rope, trust_config=self.trust_config
        )

    def folder(self) -> Path:
        """Its folder, fetched from the Hub if need be."""
        from glm_mlx import nano
        from glm_mlx.hub import resolve

        self.announce()
        return nano.FOLDER if self.name is None else resolve(self.name, revision=self.revision)

    def announce(self) -> None:
        """Say so where the choice was not the user's."""
        if self.name is None:
            terminal.say("note", "no --model given, so this is the tiny embedded one")


def debug_option(command: Command) -> Command:
    """Add `--debug`; it is read where errors are reported, not by the command."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(dict)["debug"] = True

    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Print the traceback of an error.",
    )(command)


def config_options(command: Command) -> Command:
    """Add the options about a model's config; received as `revision`, `rope`, `trust_config`."""

    @click.option("--revision", help="Branch, tag or commit of a Hugging Face model.")
    @click.option("--rope-theta", type=float, help="RoPE base, in place of the config's.")
    @click.option(
        "--yarn", type=float, metavar="FACTOR", help="Extend the context FACTOR times by YaRN."
    )
    @click.option(
        "--trust-config", is_flag=True, help="Take doubtful values of config.json as they are."
    )
    @functools.wraps(command)
    def wrapped(*args: Any, rope_theta: float | None, yarn: float | None, **others: Any) -> Any:
        rope: dict[str, object] = {}
        if rope_theta is not None:
            rope["rope_theta"] = rope_theta
        if yarn is not None:
            rope |= {"rope_type": "yarn", "factor": yarn}
        return command(*args, rope=rope or None, **others)

    return wrapped


def model_options(command: Command) -> Command:
    """Add the options that choose a model; the command receives them as `choice: ModelChoice`.

    An argument `path_or_repo` of the command is a second way to say `--model`.
    """

    @click.option(
        "--model",
        metavar="PATH_OR_REPO",
        help="Model folder or Hugging Face id.  [default: the embedded model]",
    )
    @config_options
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        model: str | None,
        revision: str | None,
        rope: dict[str, object] | None,
        trust_config: bool,
        path_or_repo: str | None = None,
        **others: Any,
    ) -> Any:
        if model is not None and path_or_repo is not None:
            raise click.UsageError("PATH_OR_REPO and --model are the same thing; give one of them")
        name = path_or_repo if model is None else model
        if revision is not None and name is None:
            raise click.UsageError("--revision is of a Hugging Face model: give --model OWNER/NAME")
        choice = ModelChoice(name, revision, rope, trust_config)
        return command(*args, choice=choice, **others)

    return wrapped


def sampling_options(command: Command) -> Command:
    """Add the options that shape a reply.

    The command receives those given as `sampling`, keywords of `GLM.stream`, checked as far as
    they can be without a model.
    """

    @click.option("--temp", type=float, help="Sampling temperature; 0 takes the likeliest token.")
    @click.option("--top-p", type=float, help="Keep the likeliest tokens of this much probability.")
    @click.option("--top-k", type=int, help="Keep this many likeliest tokens; 0 keeps all.")
    @click.option("--min-p", type=float, help="Keep tokens this likely next to the likeliest.")
    @click.option("--repetition-penalty", type=float, help="Weaken tokens seen so far; 1 is off.")
    @click.option("--presence-penalty", type=float, help="Weaken tokens the reply holds.")
    @click.option("--frequency-penalty", type=float, help="Weaken them each time they stand in it.")
    @click.option(
        "--logit-bias",
        type=token_bias,
        metavar="ID=VALUE",
        multiple=True,
        help="Add VALUE to a token's logit; spaces separate several in an environment variable.",
    )
    @click.option("--seed", type=int, help="The same seed gives the same text.")
    @click.option(
        "--stop",
        type=Text(),
        multiple=True,
        help="End the reply before this text; an environment variable holds one.",
    )
    @click.option(
        "--prefill-step-size",
        type=click.IntRange(min=1),
        help="Prompt tokens computed at once.",
    )
    @functools.wraps(command)
    def wrapped(*args: Any, **values: Any) -> Any:
        from glm_mlx.generate.sampling import Sampling
        from glm_mlx.generate.stream import checked_stops

        values["temperature"] = values.pop("temp")
        values["logit_bias"] = dict(values["logit_bias"]) or None
        sampling = {name: values.pop(name) for name in _SAMPLING}
        sampling = {name: value for name, value in sampling.items() if value is not None}
        Sampling(**sampling)
        for name in ("stop", "prefill_step_size"):
            if value := values.pop(name):
                sampling[name] = value
        checked_stops(sampling.get("stop"))
        return command(*args, sampling=sampling, **values)

    return wrapped
