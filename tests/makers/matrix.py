"""The configurations whose logits are compared with transformers', as data. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from makers.folders import Shape

LIMIT = 5e-6
# Heads wider than hidden_size / num_heads and an eps that shows: nothing may guess either.
BASE = Shape(head_dim=32, rms_norm_eps=1e-3)
ORIGINAL_TOKENS = 256  # YaRN's original context: its ramp then crosses the few pairs there are

LAYOUTS = (
    ("glm", "legacy"),
    ("glm", "parameters"),
    ("glm4", "legacy"),
    ("glm4", "parameters"),
    ("chatglm", "legacy"),
)
AXES: Mapping[str, tuple[object, ...]] = {
    "layout": LAYOUTS,
    "partial_rotary_factor": (0.25, 0.5, 1.0),
    "num_kv_heads": (1, 2, 4),
    "bias": (False, True),
    "tied": (False, True),
    "rope_theta": (1e4, 5e6, 1e8),
    "yarn": (None, *itertools.product(("config", "caller"), (2.0, 4.0, 8.0))),
}


@dataclass(frozen=True)
class Case:
    """One model to compare: a folder to write, and perhaps a YaRN that the caller asks for."""

    dialect: str
    spelling: str
    shape: Shape = BASE
    caller_yarn: Mapping[str, object] | None = None
    positions: int = 150

    @property
    def caller_rope(self) -> Mapping[str, object] | None:
        """What the caller passes as `rope=`."""
        return None if self.caller_yarn is None else {"rope_type": "yarn", **self.caller_yarn}

    @property
    def name(self) -> str:
        """A readable test id."""
        shape, yarn = self.shape, self.caller_yarn or self.shape.yarn
        parts = [
            f"{self.dialect}-{self.spelling}",
            f"rotary{shape.partial_rotary_factor}",
            f"kv{shape.num_kv_heads}",
            f"theta{shape.rope_theta:.0e}",
            "bias" if shape.bias else "nobias",
            "tied" if shape.tied else "untied",
            f"yarn{yarn['factor']}" if yarn else "plain",
            "asked" if self.caller_yarn else "written",
            f"{self.positions}tokens" if self.positions != 150 else "",
        ]
        return "-".join(part for part in parts if part)


def make_case(
    layout: tuple[str, str], yarn: tuple[str, float] | None = None, **shape_options: object
) -> Case:
    """Return the case of one value an axis."""
    shape = replace(BASE, **shape_options)  # type: ignore[arg-type]
    if yarn is None:
        return Case(*layout, shape)
    source, factor = yarn
    rope = {"factor": factor, "original_max_position_embeddings": ORIGINAL_TOKENS}
    if source == "config":
        return Case(*layout, replace(shape, yarn=rope))
    return Case(*layout, shape, caller_yarn=rope)


def all_cases() -> list[Case]:
    """Return the product of all axes: some three thousand models."""
    chosen = (dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values()))
    # The remote-code format has no key for the rotary width: it is half the head.
    return [
        make_case(**values)  # type: ignore[arg-type]
        for values in chosen
        if values["layout"] != ("chatglm", "legacy") or values["partial_rotary_factor"] == 0.5
    ]


def sampled_cases() -> list[Case]:
    """Return every 13th case: prime to each axis, so that every pair of values still meets."""
    return all_cases()[::13]


def long_cases() -> list[Case]:
    """Return a few models at 2,000 positions."""
    layouts = (("glm", "parameters"), ("glm4", "legacy"), ("chatglm", "legacy"))
    plain = [make_case(layout) for layout in layouts]
    stretched = [make_case(layout, ("config", 8.0), rope_theta=5e6) for layout in layouts]
    return [replace(case, positions=2000) for case in plain + stretched]
