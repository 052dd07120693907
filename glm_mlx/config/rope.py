"""RoPE settings: three spellings in the file and the caller's own, to one rotation.

Decides numbers only; frequencies are computed where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from glm_mlx.config.table import Range, Table, shown
from glm_mlx.errors import OptionError

TOKENS = Range(int, 1, 1 << 27)
_RANGES = {
    "rope_theta": Range(float, 2, 1e15),
    "partial_rotary_factor": Range(float, 1e-4, 1),
    "factor": Range(float, 1, 1024),
    "original_max_position_embeddings": TOKENS,
    "beta_fast": Range(float, 1e-3, 1e6),
    "beta_slow": Range(float, 1e-3, 1e6),
    "attention_factor": Range(float, 1e-3, 1e3),
    "mscale": Range(float, 0, 1e3),
    "mscale_all_dim": Range(float, 0, 1e3),
}
_KEYS = {*_RANGES, "rope_type", "truncate"}
_PLAIN_KEYS = {"rope_type", "rope_theta", "partial_rotary_factor"}


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071), as transformers applies it to GLM.

    Attributes:
        attention_factor: multiplies cos and sin, hence only the rotated part of q and k.
        truncate: whether the ends of the ramp are rounded to whole pairs.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float
    truncate: bool = True

    @property
    def max_position_embeddings(self) -> int:
        """The context in tokens that the extension is meant for."""
        return int(self.factor * self.original_max_position_embeddings)


@dataclass(frozen=True)
class Rotation:
    """What the settings amount to, for one head width and one context length."""

    theta: float
    rotary_dim: int
    max_position_embeddings: int
    yarn: Yarn | None


def caller_settings(rope: Mapping[str, object] | None) -> Mapping[str, object]:
    """Check the spelling of the caller's `rope` and return it with `type` as `rope_type`.

    Raises:
        OptionError: it is not a mapping, or has keys that mean nothing here.
    """
    if rope is None:
        return {}
    if not isinstance(rope, Mapping):
        raise OptionError(f"rope is {shown(rope)}; expected a mapping", field="rope")
    settings = _one_spelling(rope)
    unknown = sorted(shown(key) for key in settings.keys() - _KEYS)
    if unknown:
        raise OptionError(
            f"rope has unknown keys {', '.join(unknown[:5])}; known: {', '.join(sorted(_KEYS))}",
            field="rope",
        )
    return settings


def read_rotation(
    config: Table,
    asked: Mapping[str, object],
    *,
    head_dim: int,
    max_position_embeddings: int,
) -> Rotation:
    """Lay `rope_ratio` or the flat keys, `rope_scaling`, `rope_parameters` and `asked` over each
    other, the later winning key by key, and check the outcome.

    The context becomes factor * original where the caller asks for YaRN, and at least that where
    the file does.
    """
    table = _merge(config, asked)
    kind = table.data.get("rope_type", "default")
    if kind not in ("default", "yarn"):
        table.refuse("rope_type", f"is {shown(kind)}; expected default or yarn")
    yarn_keys_asked = asked.keys() - _PLAIN_KEYS
    if kind == "default" and yarn_keys_asked:
        table.refuse(min(yarn_keys_asked), 'applies to YaRN only; add "rope_type": "yarn"')
    yarn = _read_yarn(table, max_position_embeddings) if kind == "yarn" else None
    if yarn is not None:
        asks_yarn = yarn_keys_asked or "rope_type" in asked
        floor_tokens = 0 if asks_yarn else max_position_embeddings
        max_position_embeddings = max(yarn.max_position_embeddings, floor_tokens)
    partial = table.number("partial_rotary_factor", _RANGES["partial_rotary_factor"], 0.5)
    rotary_dim = int(head_dim * partial)
    if rotary_dim % 2 or not rotary_dim:
        table.refuse(
            "partial_rotary_factor",
            f"is {partial:g}, which rotates {rotary_dim} of {head_dim} elements; "
            "expected an even number above 0",
        )
    theta = table.number("rope_theta", _RANGES["rope_theta"], 10000.0)
    return Rotation(theta, rotary_dim, max_position_embeddings, yarn)


def _merge(config: Table, asked: Mapping[str, object]) -> Table:
    if config.data["model_type"] == "chatglm":
        ratio = config.number("rope_ratio", Range(float, 1e-3, 1e9), 1.0)
        settings = {"rope_theta": 10000.0 * ratio, "partial_rotary_factor": 0.5}
    else:
        settings = {key: config.data.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for key in ("rope_scaling", "rope_parameters"):
        if config.has(key):
            layer = Table(config.data[key], config.file, prefix=f"{key}.")
            for name, value in layer.data.items():
                if isinstance(value, Mapping):
                    layer.refuse(name, "is an object: RoPE that differs by layer is not GLM-4's")
            settings |= _one_spelling(layer.data)
    settings |= asked
    blamed = {*asked, *(_KEYS - settings.keys() if "rope_type" in asked else ())}
    return Table(settings, config.file, prefix="rope.", asked=blamed)


def _one_spelling(settings: Mapping[str, object]) -> dict[str, object]:
    """Without nulls, and with the older key `type` as `rope_type`, which wins over it."""
    given = {key: value for key, value in settings.items() if value is not None}
    older = given.pop("type", None)
    return given if older is None else {"rope_type": older} | given


def _read_yarn(table: Table, max_position_embeddings: int) -> Yarn:
    def number(key: str, default: float | None = None) -> float:
        value: float = table.number(key, _RANGES[key], default)
        return value

    factor = number("factor")
    numerator, denominator = number("mscale", 0), number("mscale_all_dim", 0)
    if not (numerator and denominator):
        numerator, denominator = 1, 0
    log = 0.1 * math.log(factor)
    yarn = Yarn(
        factor=factor,
        original_max_position_embeddings=int(
            number("original_max_position_embeddings", max_position_embeddings)
        ),
        beta_fast=number("beta_fast", 32),
        beta_slow=number("beta_slow", 1),
        attention_factor=number(
            "attention_factor", (log * numerator + 1) / (log * denominator + 1)
        ),
        truncate=table.flag("truncate") is not False,
    )
    if yarn.beta_fast < yarn.beta_slow:
        table.refuse("beta_fast", f"is {yarn.beta_fast:g}, below beta_slow {yarn.beta_slow:g}")
    return yarn
