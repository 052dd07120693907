"""What a config can get wrong is refused by file, key and range, and nothing else escapes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.folders import DIALECTS, Config, Shape, make_config

from glm_mlx.config import ModelConfig, parse_config, read_config
from glm_mlx.errors import ConfigError, OptionError

REQUIRED = {
    "glm4": (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps",
        "eos_token_id",
    ),
    "chatglm": (
        "hidden_size", "num_layers", "num_attention_heads", "multi_query_group_num",
        "ffn_hidden_size", "padded_vocab_size", "seq_length", "layernorm_epsilon", "eos_token_id",
    ),
}  # fmt: skip


def refusal(data: object, **options: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, file="folder/config.json", **options)  # type: ignore[arg-type]
    error = caught.value
    assert str(error).startswith("folder/config.json: ")
    assert "\n" not in str(error)
    assert error.exit_code == 3
    return error


@given(st.sampled_from(sorted(REQUIRED)), st.data(), st.booleans())
def test_all_missing_keys_are_in_one_message(dialect: str, draw: st.DataObject, null: bool) -> None:
    gone = draw.draw(st.sets(st.sampled_from(REQUIRED[dialect]), min_size=1))
    data = make_config(dialect, Shape())
    for key in gone:
        data[key] = None
        if not null:
            del data[key]
    said = str(refusal(data)).removeprefix("folder/config.json: missing keys: ")
    assert set(said.split(", ")) == gone


BAD_NUMBERS: list[object] = [
    0, -1, True, "4", "", [], {}, [4], 1.5, float("nan"), float("inf"), float("-inf"), 1e308,
    10**9, 10**5000, -(10**5000), "\ud800\n",
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=lambda value: str(type(value).__name__))
@pytest.mark.parametrize("dialect", sorted(REQUIRED))
def test_sizes_are_positive_integers_within_reason(dialect: str, value: object) -> None:
    for key in REQUIRED[dialect][:-2]:
        error = refusal(make_config(dialect, Shape()) | {key: value})
        assert error.field == key
        assert f"{key} is " in str(error)
        assert "expected an integer from 1 to " in str(error)


@pytest.mark.parametrize(
    ("dialect", "edits", "said"),
    [
        ("glm4", {"rms_norm_eps": 0}, "rms_norm_eps is 0; expected a number from"),
        ("glm4", {"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ("glm4", {"num_hidden_layers": 1_000_000}, "expected an integer from 1 to 1,024"),
        ("glm4", {"num_attention_heads": 3}, "num_key_value_heads is 2, which does not divide 3"),
        ("chatglm", {"multi_query_group_num": 3}, "multi_query_group_num is 3, which does not"),
        ("glm4", {"model_type": None}, "model_type is missing; supported: chatglm, glm, glm4"),
        ("glm4", {"model_type": "glm4_moe"}, "model_type is 'glm4_moe'; supported: chatglm"),
        ("glm4", {"model_type": ["glm4"]}, "model_type is ['glm4']"),
        ("glm4", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; this decoder computes \"silu\""),
        ("glm4", {"n_routed_experts": 128}, "a mixture of experts"),
        ("glm", {"text_config": {"hidden_size": 1}}, "a part of a multimodal model"),
        ("chatglm", {"vision_config": {"hidden_size": 1792}}, "a vision model, GLM-4V"),
        ("chatglm", {"padded_vocab_size": 65024}, "this is ChatGLM2 or ChatGLM3"),
        ("chatglm", {"position_encoding_2d": True}, "ChatGLM-6B, the first generation"),
        ("chatglm", {"pre_seq_len": 128}, "a prefix-tuned checkpoint"),
        ("chatglm", {"quantization_bit": 4}, "ChatGLM's own integer format"),
        ("chatglm", {"add_bias_linear": True}, "add_bias_linear is true"),
        ("chatglm", {"rmsnorm": False}, "rmsnorm is false; this decoder computes true"),
        ("chatglm", {"rmsnorm": 1}, "rmsnorm is 1; this decoder computes true"),
        ("chatglm", {"apply_residual_connection_post_layernorm": True}, "post_layernorm is true"),
        ("chatglm", {"post_layer_norm": False}, "post_layer_norm is false"),
        ("chatglm", {"original_rope": "no"}, "original_rope is 'no'; expected true or false"),
        ("chatglm", {"rope_ratio": 0}, "rope_ratio is 0; expected a number"),
        ("chatglm", {"rope_ratio": "500"}, "rope_ratio is '500'; expected a number"),
        ("chatglm", {"multi_query_attention": 1}, "multi_query_attention is 1; expected true or"),
        ("glm4", {"attention_bias": 0}, "attention_bias is 0; expected true or false"),
        ("glm4", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ("glm4", {"eos_token_id": "<|user|>"}, "eos_token_id holds '<|user|>'; a token id here"),
        ("glm4", {"eos_token_id": [1, 352]}, "holds 352; a token id here is an integer from 0 to"),
        ("glm4", {"eos_token_id": 151329}, "eos_token_id holds 151329"),
        ("glm4", {"eos_token_id": -1}, "eos_token_id holds -1"),
        ("glm4", {"eos_token_id": [True]}, "eos_token_id holds true"),
        ("glm4", {"eos_token_id": [[1]]}, "eos_token_id holds [1]"),
        ("glm4", {"eos_token_id": []}, "eos_token_id is an empty list; expected one"),
        ("glm4", {"pad_token_id": 352}, "pad_token_id holds 352"),
        ("glm4", {"partial_rotary_factor": 1.25}, "partial_rotary_factor is 1.25; expected a num"),
        ("glm4", {"partial_rotary_factor": 0.2}, "rotates 3 of 16 elements; expected an even"),
        ("glm4", {"partial_rotary_factor": 0.01}, "rotates 0 of 16 elements; expected an even"),
        ("glm4", {"partial_rotary_factor": 0}, "partial_rotary_factor is 0; expected a number"),
        ("chatglm", {"kv_channels": 18}, "rotates 9 of 18 elements; expected an even"),
        ("glm4", {"rope_theta": 0}, "rope.rope_theta is 0; expected a number"),
        ("glm4", {"rope_theta": -1e4}, "rope.rope_theta is -10000.0; expected a number"),
        ("glm4", {"rope_scaling": [4]}, "rope_scaling is [4]; expected a JSON object"),
        ("glm4", {"rope_scaling": {"type": "linear"}}, "'linear'; expected default or yarn"),
        ("glm4", {"rope_scaling": {"rope_type": "dynamic"}}, "rope_type is 'dynamic'; expected"),
        ("glm4", {"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type is ['yarn']; expected"),
        ("glm4", {"rope_parameters": "yarn"}, "rope_parameters is 'yarn'; expected a JSON object"),
        ("glm4", {"rope_parameters": {"full_attention": {}}}, "RoPE that differs by layer"),
        ("glm4", {"rope_scaling": {"type": "yarn"}}, "rope.factor is missing; expected"),
        ("glm4", {"rope_scaling": {"type": "yarn", "factor": 0.5}}, "rope.factor is 0.5; expected"),
        ("glm4", {"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}}, "rope.truncate"),
        (
            "glm4",
            {"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 32}},
            "rope.beta_fast is 1, below beta_slow 32",
        ),
    ],
)
def test_refusal(dialect: str, edits: Config, said: str) -> None:
    assert said in str(refusal(make_config(dialect, Shape()) | edits))


@pytest.mark.parametrize("data", [[], "x", None, 3, [{}]])
def test_config_must_be_an_object(data: object) -> None:
    assert "expected a JSON object" in str(refusal(data))


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ("yarn", "rope is 'yarn'; expected a mapping"),
        ({"theta": 5e6}, "rope has unknown keys 'theta'; known: attention_factor"),
        ({1: 2, "a": 3}, "rope has unknown keys 'a', 1"),
        ({"factor": 4.0}, 'rope.factor applies to YaRN only; add "rope_type": "yarn"'),
        ({"rope_type": "yarn"}, "rope.factor is missing"),
        ({"type": "linear", "factor": 2}, "rope.rope_type is 'linear'; expected default or yarn"),
        ({"rope_theta": float("nan")}, "rope.rope_theta is nan; expected a number"),
        ({"rope_theta": {}}, "rope.rope_theta is {}; expected a number"),
        ({"partial_rotary_factor": 3}, "rope.partial_rotary_factor is 3; expected a number"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_callers_rope_is_refused_as_an_option(dialect: str, rope: object, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_config(make_config(dialect, Shape()), rope=rope)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_bad_file_is_not_blamed_on_the_caller() -> None:
    data = make_config("glm4", Shape()) | {"partial_rotary_factor": 3}
    refusal(data, rope={"rope_type": "yarn", "factor": 2})


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, "file not found"),
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is a special file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text('{"model_type":\n"glm4",}'), "line 2, column 8"),
        (lambda path: path.write_text("[]"), "holds a list; expected a JSON object"),
        (lambda path: path.write_text("[" * 200_000), "more than 100 levels"),
        (lambda path: path.write_text('{"rope_theta": NaN}'), "NaN is not finite"),
        (lambda path: path.write_bytes(b" " * (10 << 20) + b"{}"), "larger than 10,485,760"),
    ],
    ids=["absent", "folder", "fifo", "empty", "syntax", "list", "nested", "nan", "large"],
)
def test_config_files_that_cannot_be_read(
    tmp_path: Path, write: Callable[[Path], object], said: str
) -> None:
    write(tmp_path / "config.json")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path)
    assert said in str(caught.value)
    assert caught.value.file == str(tmp_path / "config.json")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["yarn", "default", "glm", "chatglm", "silu", "affine", 4, 64, 10**4000]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(
        st.text(max_size=3) | st.sampled_from(
            ["type", "rope_type", "factor", "rope_theta", "bits", "group_size", "mode", "lm_head"]
        ),
        children, max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip
KEYS = sorted(
    {key for dialect in DIALECTS for key in make_config(dialect, Shape())}
    | {"rope_parameters", "quantization", "quantization_config", "vision_config", "rope_ratio"}
)


@pytest.mark.filterwarnings("ignore::glm_mlx.errors.GLMWarning")
@given(
    st.sampled_from(DIALECTS),
    st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3),
    st.none() | ANYTHING,
)
def test_any_json_parses_or_is_refused(dialect: str, edits: Config, rope: object) -> None:
    data = make_config(dialect, Shape()) | edits
    said = ""
    try:
        assert isinstance(parse_config(data, rope=rope), ModelConfig)  # type: ignore[arg-type]
    except (ConfigError, OptionError) as error:
        said = str(error)
    assert "\n" not in said
    said.encode()
