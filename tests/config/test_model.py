"""Every published GLM-4 config, in every spelling, comes out as the numbers its card states."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.folders import DIALECTS, Config, Shape, make_config

from glm_mlx.config import ModelConfig, parse_config, read_config
from glm_mlx.errors import ConfigError, GLMWarning

GLM4_STOP_IDS = [151329, 151336, 151338]


@pytest.fixture(autouse=True)
def strict_warnings() -> Iterator[None]:
    """A warning that a test does not expect fails it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", GLMWarning)
        yield


def published(dialect: str, **values: object) -> Config:
    """A config as published, at the sizes of the 9B models unless told otherwise."""
    shape = Shape(
        hidden_size=4096, num_layers=40, num_heads=32, head_dim=128, intermediate_size=13696,
        vocab_size=151552, max_position_embeddings=131072, rms_norm_eps=1.5625e-07,
    )  # fmt: skip
    ids = {"eos_token_id": GLM4_STOP_IDS, "pad_token_id": 151329}
    return make_config(dialect, shape) | ids | values


PUBLISHED: list[tuple[str, Config, Mapping[str, object]]] = [
    (
        "glm-4-9b",
        published("chatglm", seq_length=8192, rope_ratio=1),
        {"rope_theta": 1e4, "max_position_embeddings": 8192, "num_kv_heads": 2},
    ),
    ("glm-4-9b-chat", published("chatglm", rope_ratio=500), {"rope_theta": 5e6, "num_layers": 40}),
    (
        "glm-4-9b-chat-1m",
        published("chatglm", rope_ratio=10000, multi_query_group_num=4, seq_length=1048576),
        {"rope_theta": 1e8, "num_kv_heads": 4, "max_position_embeddings": 1048576},
    ),
    (
        "cogagent",
        published("chatglm", original_rope=False),
        {"rope_interleaved": False, "family": "chatglm"},
    ),
    (
        "GLM-4-9B-0414",
        published("glm4", max_position_embeddings=32768, rms_norm_eps=1e-5),
        {"rotary_dim": 64, "rope_theta": 1e4, "attention_bias": True, "yarn": None},
    ),
    (
        "GLM-Z1-Rumination-32B-0414",
        published("glm4", num_hidden_layers=61, hidden_size=6144, num_attention_heads=48,
                  num_key_value_heads=8, intermediate_size=23040, attention_bias=False),
        {"num_kv_heads": 8, "hidden_size": 6144, "head_dim": 128, "attention_bias": False,
         "max_position_embeddings": 131072},
    ),
    (
        "glm-edge-1.5b-chat",
        published("glm", num_hidden_layers=28, hidden_size=2048, num_attention_heads=16,
                  num_key_value_heads=4, intermediate_size=6144, vocab_size=59264,
                  max_position_embeddings=8192, partial_rotary_factor=1.0,
                  tie_word_embeddings=True, eos_token_id=[59246, 59253, 59255],
                  pad_token_id=59246, attention_bias=False),
        {"rotary_dim": 128, "tie_word_embeddings": True, "pad_token_id": 59246,
         "eos_token_ids": (59246, 59253, 59255)},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "facts"), PUBLISHED)
def test_published_configs(name: str, data: Config, facts: Mapping[str, object]) -> None:
    config = parse_config(data)
    assert {name: getattr(config, name) for name in facts} == facts


SHAPES = st.builds(
    lambda heads, kv, **sizes: Shape(num_heads=heads * kv, num_kv_heads=kv, **sizes),
    st.integers(1, 16), st.integers(1, 8), hidden_size=st.integers(1, 9000),
    num_layers=st.integers(1, 100), head_dim=st.sampled_from([8, 16, 64, 128]),
    intermediate_size=st.integers(1, 40000), vocab_size=st.integers(352, 200000),
    rms_norm_eps=st.floats(1e-9, 1e-3), bias=st.booleans(), tied=st.booleans(),
    partial_rotary_factor=st.sampled_from([0.25, 0.5, 1.0]),
    rope_theta=st.sampled_from([1e4, 5e6, 1e8]),
    yarn=st.none() | st.fixed_dictionaries({
        "factor": st.sampled_from([1.0, 2.0, 4.0, 8]),
        "original_max_position_embeddings": st.sampled_from([4096, 32768]),
    }),
)  # fmt: skip


@given(SHAPES)
def test_every_spelling_is_the_same_model(shape: Shape) -> None:
    legacy = parse_config(make_config("glm4", shape))
    assert parse_config(make_config("glm4", shape, spelling="parameters")) == legacy
    assert parse_config(make_config("glm", shape)) == replace(legacy, family="glm")
    assert hash(legacy) == hash(replace(legacy))
    assert legacy.rotary_dim == shape.head_dim * shape.partial_rotary_factor
    half = replace(shape, partial_rotary_factor=0.5)
    remote = parse_config(make_config("chatglm", half))
    expected = parse_config(make_config("glm4", half))
    assert replace(remote, family="glm4") == expected


def parse(dialect: str = "glm4", **edits: object) -> ModelConfig:
    return parse_config(make_config(dialect, Shape()) | edits)


@pytest.mark.parametrize("silent", [None, "absent"])
def test_silent_keys_mean_what_transformers_takes(silent: str | None) -> None:
    data = make_config("glm4", Shape(head_dim=128))
    keys = ("head_dim", "attention_bias", "tie_word_embeddings", "rope_theta", "hidden_act",
            "partial_rotary_factor", "pad_token_id", "rope_scaling")  # fmt: skip
    for key in keys:
        data[key] = None
        if silent == "absent":
            del data[key]
    config = parse_config(data)
    assert config.head_dim == 128
    assert config.attention_bias is None
    assert not config.tie_word_embeddings
    assert (config.rope_theta, config.rotary_dim, config.pad_token_id) == (1e4, 64, None)


@pytest.mark.parametrize(
    ("edits", "kv_heads"),
    [
        ({"multi_query_attention": True, "multi_query_group_num": 2}, 2),
        ({"multi_query_attention": False, "multi_query_group_num": 2}, 4),
        ({"multi_query_attention": False, "multi_query_group_num": None}, 4),
        ({"multi_query_attention": None, "multi_query_group_num": 1}, 1),
        ({"multi_query_attention": None, "multi_query_group_num": None}, 4),
    ],
)
def test_chatglm_kv_heads(edits: Config, kv_heads: int) -> None:
    assert parse("chatglm", **edits).num_kv_heads == kv_heads


@pytest.mark.parametrize(("value", "ids"), [(7, (7,)), ([7], (7,)), ([9, 7, 9], (9, 7)), (0, (0,))])
def test_eos_is_one_id_or_a_list(value: object, ids: tuple[int, ...]) -> None:
    assert parse(eos_token_id=value).eos_token_ids == ids


@pytest.mark.parametrize("dialect", DIALECTS)
def test_ids_that_nobody_chose_are_ignored_aloud(dialect: str) -> None:
    with pytest.warns(GLMWarning, match="beyond this vocabulary of 352"):
        config = parse(dialect, eos_token_id=GLM4_STOP_IDS)
    assert config.eos_token_ids == ()
    with pytest.warns(GLMWarning, match="pad_token_id"):
        assert parse(dialect, pad_token_id=151329).pad_token_id is None


def test_rope_ratio_lost_by_the_converter_is_suspected() -> None:
    suspect = published("glm")
    with pytest.warns(GLMWarning, match="rope_theta 10000 is doubtful with 131,072") as caught:
        assert parse_config(suspect).rope_theta == 1e4
    assert caught[0].filename == __file__
    with pytest.warns(GLMWarning, match="doubtful"):
        parse_config(suspect, rope={"rope_type": "yarn", "factor": 2})
    assert parse_config(suspect, rope={"rope_theta": 5e6}).rope_theta == 5e6
    assert parse_config(suspect, trust_config=True).rope_theta == 1e4
    parse_config(suspect | {"rope_theta": 5e6})
    parse_config(suspect | {"max_position_embeddings": 8192})
    parse_config(published("glm4"))
    parse_config(published("chatglm"))


def test_code_in_the_folder_is_never_run_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('code from a model folder was run')")
    for dialect, key in [("glm4", "auto_map"), ("glm4", "model_file"), ("chatglm", "model_file")]:
        data = make_config(dialect, Shape()) | {key: "evil.py"}
        (tmp_path / "config.json").write_text(json.dumps(data))
        with pytest.warns(GLMWarning, match=f"{key} ignored"):
            read_config(tmp_path)
    assert parse("chatglm").family == "chatglm"  # auto_map in it, and no warning


def test_file_and_options_reach_the_parser(tmp_path: Path) -> None:
    data = published("glm")
    (tmp_path / "config.json").write_text(json.dumps(data), encoding="utf-8-sig")
    rope = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e6}
    assert read_config(tmp_path, rope=rope) == parse_config(data, rope=rope)
    assert read_config(tmp_path, trust_config=True).rope_theta == 1e4
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert caught.value.file == str(tmp_path / "config.json")


@pytest.mark.parity
@pytest.mark.parametrize("dialect", ["glm", "glm4"])
@pytest.mark.parametrize("yarn", [False, True])
def test_what_transformers_saves_is_what_it_meant(tmp_path: Path, dialect: str, yarn: bool) -> None:
    import transformers

    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    kind = {"glm": transformers.GlmConfig, "glm4": transformers.Glm4Config}[dialect]
    theirs = kind(
        vocab_size=400, hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=16,
        eos_token_id=[3, 5], pad_token_id=3, max_position_embeddings=2048, attention_bias=False,
        rope_parameters={"rope_theta": 5e6, **rope} if yarn else None,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert config.family == dialect
    assert (config.yarn is not None) is yarn
    assert (config.hidden_size, config.num_layers) == (again.hidden_size, again.num_hidden_layers)
    assert (config.head_dim, config.num_kv_heads) == (again.head_dim, again.num_key_value_heads)
    assert config.rope_theta == again.rope_parameters["rope_theta"]
    assert config.rotary_dim == 16 * again.rope_parameters["partial_rotary_factor"]
    assert config.eos_token_ids == tuple(again.eos_token_id)
    assert config.attention_bias is again.attention_bias
    if yarn:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        _, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](again, device="cpu")
        assert config.yarn.attention_factor == pytest.approx(attention_factor, rel=1e-12)
