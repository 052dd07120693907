"""What is written reads as what it was written from, here and in mlx-lm."""
# mypy: allow-untyped-calls

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.folders import DIALECTS, Config, Shape, make_config
from mlx_lm.models import glm, glm4

from glm_mlx.config import (
    ModelConfig,
    Quantization,
    QuantSpec,
    parse_config,
    to_chatglm_config,
    to_glm_config,
)
from glm_mlx.errors import OptionError

YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}


@st.composite
def shapes(draw: st.DrawFn, *, remote: bool = False) -> Shape:
    """Shapes with every number drawn; `remote` ones are such as ChatGLM's code computes."""
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    yarn = {
        "factor": draw(st.floats(1, 64)),
        "original_max_position_embeddings": draw(st.integers(1, 1 << 20)),
        "attention_factor": draw(st.floats(0.5, 2)),
        "truncate": draw(st.booleans()),
    }
    return Shape(
        hidden_size=draw(st.integers(1, 1 << 14)),
        num_layers=draw(st.integers(1, 100)),
        num_heads=kv_heads * draw(st.integers(1, 16)),
        num_kv_heads=kv_heads,
        head_dim=4 * draw(st.integers(1, 64)),
        intermediate_size=draw(st.integers(1, 1 << 15)),
        max_position_embeddings=draw(st.integers(1, 1 << 21)),
        rms_norm_eps=draw(st.floats(1e-8, 1e-2)),
        bias=draw(st.booleans()),
        tied=False if remote else draw(st.booleans()),
        partial_rotary_factor=0.5 if remote else draw(st.floats(0.5, 1)),
        rope_theta=10000 * draw(st.integers(1, 10**6)) / 100,
        rope_interleaved=draw(st.booleans()) if remote else True,
        yarn=draw(st.none() | st.just(yarn)),
    )


def is_rotatable(shape: Shape) -> bool:
    return int(shape.head_dim * shape.partial_rotary_factor) % 2 == 0


def theirs(written: Config) -> Any:
    """mlx-lm's arguments from a config."""
    module = glm4 if written["model_type"] == "glm4" else glm
    return module.ModelArgs.from_dict(written)


@given(
    dialect=st.sampled_from(DIALECTS),
    spelling=st.sampled_from(["legacy", "parameters"]),
    shape=st.one_of(shapes(remote=True), shapes().filter(is_rotatable)),
)
def test_a_glm_config_reads_as_its_source(dialect: str, spelling: str, shape: Shape) -> None:
    source = make_config(dialect, shape, spelling=spelling)
    config = parse_config(source, trust_config=True)
    written = to_glm_config(config, source, dtype="bfloat16")
    family = "glm4" if dialect == "glm4" else "glm"
    assert parse_config(written, trust_config=True) == replace(config, family=family)
    flat = {key: written[key] for key in written if key != "rope_parameters"}
    assert parse_config(flat, trust_config=True) == replace(config, family=family)
    assert theirs(written).rope_theta == config.rope_theta


@given(dialect=st.sampled_from(["chatglm", "glm"]), shape=shapes(remote=True))
def test_a_chatglm_config_reads_as_its_source(dialect: str, shape: Shape) -> None:
    source = make_config(dialect, shape)
    config = parse_config(source, trust_config=True)
    read = parse_config(to_chatglm_config(config, source, dtype="bfloat16"))
    assert read.rope_theta == pytest.approx(config.rope_theta, rel=1e-15)  # no ratio gives some
    assert replace(read, rope_theta=config.rope_theta) == replace(config, family="chatglm")


@given(shape=shapes(remote=True))
def test_chatglm_to_glm_and_back_keeps_every_key(shape: Shape) -> None:
    source = make_config("chatglm", replace(shape, yarn=None)) | {"hidden_dropout": 0.25}
    there = to_glm_config(parse_config(source), source, dtype="float32")
    back = to_chatglm_config(parse_config(there, trust_config=True), there, dtype="float32")
    kept = {key: back[key] for key in source if key != "auto_map"}
    assert kept == {key: value for key, value in source.items() if key != "auto_map"}


@given(ratio=st.integers(1, 10**12), digits=st.integers(0, 6))
def test_a_rope_ratio_comes_back_as_it_was(ratio: int, digits: int) -> None:
    ratio_read = min(max(ratio / 10**digits, 1e-3), 1e9)
    source = make_config("chatglm", Shape()) | {"rope_ratio": ratio_read}
    written = to_chatglm_config(parse_config(source), source, dtype="float32")
    assert written["rope_ratio"] == ratio_read


@given(head_dim=st.integers(1, 512), share=st.floats(0, 1))
def test_the_rotary_width_survives_any_rounding(head_dim: int, share: float) -> None:
    head_dim *= 2
    rotary_dim = max(2, 2 * int(share * head_dim / 2))
    factor = math.nextafter(rotary_dim / head_dim, 1)
    shape = Shape(head_dim=head_dim, partial_rotary_factor=factor)
    source = make_config("glm", shape)
    config = parse_config(source)
    assert config.rotary_dim == rotary_dim
    written = to_glm_config(config, source, dtype="float32")
    assert parse_config(written).rotary_dim == rotary_dim


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("yarn", [None, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_mlx_lm_reads_the_same_numbers(
    dialect: str, yarn: dict[str, object] | None, bias: bool
) -> None:
    source = make_config(
        dialect, Shape(yarn=yarn, bias=bias, rope_theta=5e6), spelling="parameters"
    )
    config = parse_config(source)
    args = theirs(to_glm_config(config, source, dtype="float32"))
    assert args.attention_bias is bias
    assert args.head_dim == config.head_dim
    assert args.num_key_value_heads == config.num_kv_heads
    assert args.max_position_embeddings == config.max_position_embeddings
    if dialect == "glm4":
        assert int(args.head_dim * args.partial_rotary_factor) == config.rotary_dim
    else:
        assert args.tie_word_embeddings is False


def config_of(dialect: str, **options: Any) -> tuple[ModelConfig, Config]:
    source = make_config(dialect, Shape(**options))
    return parse_config(source), source


@pytest.mark.parametrize("layout", ["glm", "chatglm"])
def test_code_and_places_are_dropped_and_the_rest_is_kept(layout: str) -> None:
    config, source = config_of(layout)
    code = {"auto_map": {"AutoConfig": "evil.Config"}, "model_file": "evil.py"}
    source |= code | {"_name_or_path": "somewhere", "custom_pipelines": {"x": {"impl": "evil.X"}}}
    source |= {"num_labels": 3, "initializer_range": 0.01, "use_cache": False, "rope_ratio": 7}
    write = to_glm_config if layout == "glm" else to_chatglm_config
    written = write(config, source, dtype="float16")
    assert "evil" not in str(written)
    assert "_name_or_path" not in written
    assert (written["num_labels"], written["initializer_range"]) == (3, 0.01)
    assert written["use_cache"] is False
    assert written.get("rope_ratio", 1) == 1
    assert (written["dtype"], written["torch_dtype"]) == ("float16", "float16")


def test_no_key_of_chatglm_is_left_in_a_glm_config() -> None:
    config, source = config_of("chatglm")
    foreign = source.keys() - make_config("glm", Shape()).keys()
    assert not foreign & to_glm_config(config, source, dtype="float32").keys()


def test_quantization_is_written_under_both_its_names() -> None:
    config, source = config_of("glm4")
    overrides = {"lm_head": QuantSpec(8, 64, "affine"), "model.embed_tokens": None}
    quantization = Quantization(QuantSpec(4, 64, "affine"), overrides)
    config = replace(config, quantization=quantization)
    written = to_glm_config(config, source, dtype="float32")
    assert written["quantization"] == written["quantization_config"]
    assert parse_config(written) == config


def test_old_quantization_is_not_copied() -> None:
    config, source = config_of("glm4")
    source["quantization"] = source["quantization_config"] = {"bits": 4, "group_size": 64}
    written = to_glm_config(config, source, dtype="float32")
    assert not written.keys() & {"quantization", "quantization_config"}


@pytest.mark.parametrize(
    ("dialect", "options", "reason"),
    [
        ("glm4", {}, "two more norms"),
        ("glm", {"tied": True}, "tied"),
        ("glm", {"partial_rotary_factor": 1.0}, "rotates 16 of 16"),
    ],
)
def test_what_chatglm_cannot_hold_is_refused(
    dialect: str, options: dict[str, object], reason: str
) -> None:
    config, source = config_of(dialect, **options)
    with pytest.raises(OptionError, match=reason) as refusal:
        to_chatglm_config(config, source, dtype="float32")
    assert refusal.value.field == "layout"


def test_stop_ids_that_mean_nothing_are_left_to_the_tokenizer() -> None:
    source = make_config("glm", Shape()) | {"eos_token_id": [151329, 151336, 151338]}
    with pytest.warns(UserWarning, match="beyond this vocabulary"):
        config = parse_config(source)
    assert to_glm_config(config, source, dtype="float32")["eos_token_id"] == source["eos_token_id"]
