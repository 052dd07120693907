"""RoPE and YaRN settings, whoever gives them, are the numbers transformers would use."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.folders import Config, Shape, make_config

from glm_mlx.config import ModelConfig, Yarn, parse_config

README_SNIPPET = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}


def parse(dialect: str = "glm4", rope: Config | None = None, **edits: object) -> ModelConfig:
    shape = Shape(head_dim=128, max_position_embeddings=32768)
    return parse_config(make_config(dialect, shape) | edits, rope=rope)


def yarn_of(settings: Config) -> Yarn:
    yarn = parse(rope_scaling={"rope_type": "yarn", "factor": 4.0, **settings}).yarn
    assert yarn is not None
    return yarn


@pytest.mark.parametrize(
    ("factor", "attention_factor"), [(1, 1), (2, 1.0693147), (4, 1.1386294), (8, 1.2079442)]
)
def test_golden_attention_factors(factor: float, attention_factor: float) -> None:
    config = parse(rope_scaling=README_SNIPPET | {"factor": factor})
    assert config.rotary_dim == 64
    assert config.yarn is not None
    assert config.yarn.attention_factor == pytest.approx(attention_factor, abs=5e-8)
    assert config.yarn == Yarn(
        factor=factor,
        original_max_position_embeddings=32768,
        beta_fast=32,
        beta_slow=1,
        attention_factor=config.yarn.attention_factor,
        truncate=True,
    )


@given(st.floats(1, 100), st.floats(0.1, 10), st.floats(0.1, 10))
def test_attention_factor_from_mscales(factor: float, mscale: float, all_dim: float) -> None:
    grown = [0.1 * scale * math.log(factor) + 1 for scale in (1, mscale, all_dim)]
    both = {"factor": factor, "mscale": mscale, "mscale_all_dim": all_dim}
    assert yarn_of(both).attention_factor == pytest.approx(grown[1] / grown[2])
    one = yarn_of({"factor": factor, "mscale": mscale})
    assert one.attention_factor == pytest.approx(grown[0])
    assert yarn_of(both | {"mscale_all_dim": 0}).attention_factor == one.attention_factor
    assert yarn_of(both | {"attention_factor": 0.75}).attention_factor == 0.75


def test_every_yarn_key_is_read_and_null_is_absent() -> None:
    given_keys = {"beta_fast": 16, "beta_slow": 2, "truncate": False, "attention_factor": 1.5}
    yarn = yarn_of(given_keys)
    assert {key: getattr(yarn, key) for key in given_keys} == given_keys
    assert yarn_of(dict.fromkeys(given_keys)) == yarn_of({})


def test_the_newer_spelling_wins_key_by_key() -> None:
    config = parse(
        rope_theta=1e4,
        partial_rotary_factor=1.0,
        rope_scaling={"type": "yarn", "rope_type": "yarn", "factor": 2.0, "beta_fast": 20},
        rope_parameters={"rope_theta": 5e6, "factor": 8.0, "partial_rotary_factor": 0.25},
    )
    assert (config.rope_theta, config.rotary_dim) == (5e6, 32)
    assert config.yarn is not None
    assert (config.yarn.factor, config.yarn.beta_fast) == (8, 20)


def test_the_callers_settings_win_over_all() -> None:
    config = parse(
        rope={"rope_theta": 1e8, "partial_rotary_factor": 1.0},
        rope_parameters={"rope_theta": 5e6, "rope_type": "default"},
    )
    assert (config.rope_theta, config.rotary_dim) == (1e8, 128)
    assert parse("chatglm", {"rope_theta": 5e6}, rope_ratio=3).rope_theta == 5e6
    assert parse("chatglm", rope_ratio=500).rope_theta == 5e6
    assert parse("chatglm", rope_ratio=None).rope_theta == 1e4
    assert parse(rope={"rope_type": "default"}, rope_scaling=README_SNIPPET).yarn is None


@pytest.mark.parametrize("dialect", ["chatglm", "glm", "glm4"])
def test_yarn_asked_for_equals_yarn_in_the_file(dialect: str) -> None:
    in_file = parse(dialect, rope_scaling=README_SNIPPET)
    assert parse(dialect, README_SNIPPET) == in_file
    assert parse(dialect, {"rope_type": "yarn", "factor": 4}) == in_file


@pytest.mark.parametrize(
    ("positions", "in_file", "asked", "context"),
    [
        (32768, None, None, 32768),
        (32768, README_SNIPPET, None, 131072),
        (131072, README_SNIPPET, None, 131072),
        (131072, README_SNIPPET | {"factor": 2.0}, None, 131072),
        (131072, README_SNIPPET, {"factor": 2.0}, 65536),
        (131072, README_SNIPPET, {"rope_theta": 5e6}, 131072),
        (131072, README_SNIPPET, {"rope_type": "default"}, 131072),
        (32768, None, {"rope_type": "yarn", "factor": 1.5}, 49152),
        (131072, None, README_SNIPPET | {"factor": 2}, 65536),
    ],
)
def test_context_follows_yarn(
    positions: int, in_file: Config | None, asked: Config | None, context: int
) -> None:
    config = parse(rope=asked, rope_scaling=in_file, max_position_embeddings=positions)
    assert config.max_position_embeddings == context
