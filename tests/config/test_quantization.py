"""Every packing MLX writes is read back as it was written; every other one is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.folders import Shape, make_config

from glm_mlx.config import Quantization, QuantSpec, parse_config
from glm_mlx.errors import ConfigError

AFFINE = {"bits": 4, "group_size": 64}
WRITABLE = [
    *(QuantSpec(b, g, "affine") for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128)),
    QuantSpec(4, 32, "mxfp4"), QuantSpec(4, 16, "nvfp4"), QuantSpec(8, 32, "mxfp8"),
]  # fmt: skip
SPECS = st.sampled_from(WRITABLE)
PATHS = st.text().filter(lambda path: path not in {"bits", "group_size", "mode", "quant_method"})


def read(**blocks: object) -> Quantization | None:
    return parse_config(make_config("glm4", Shape()) | blocks).quantization


@given(SPECS, st.dictionaries(PATHS, st.none() | SPECS, max_size=4))
def test_written_then_read(default: QuantSpec, overrides: dict[str, QuantSpec | None]) -> None:
    expected = Quantization(default, overrides)
    block = json.loads(json.dumps(expected.to_json()))
    assert read(quantization=block) == expected
    assert read(quantization=block, quantization_config=block) == expected
    assert read(quantization_config=block) == expected
    assert hash(expected) == hash(read(quantization=block))
    for path, spec in overrides.items():
        assert expected.spec_for(path) == spec
    assert expected.spec_for("no.such.module") == default


def test_block_is_what_mlx_lm_writes() -> None:
    block = Quantization(
        QuantSpec(4, 64, "affine"), {"lm_head": QuantSpec(6, 32, "affine"), "model.a": None}
    ).to_json()
    assert block == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "lm_head": {"group_size": 32, "bits": 6, "mode": "affine"},
        "model.a": False,
    }


def test_absent_means_not_quantized() -> None:
    assert read() is None
    assert read(quantization=None, quantization_config=None) is None


def test_silence_means_what_mlx_takes() -> None:
    block = AFFINE | {
        "a": {"bits": 8}, "b": {"group_size": 32}, "c": {"mode": "mxfp8"}, "d": True, "e": {},
    }  # fmt: skip
    quantization = read(quantization=block | {"group_size": 128})
    assert quantization is not None
    assert quantization.default == QuantSpec(4, 128, "affine")
    assert quantization.overrides == {
        "a": QuantSpec(8, 64, "affine"),
        "b": QuantSpec(4, 32, "affine"),
        "c": QuantSpec(8, 32, "mxfp8"),
        "d": QuantSpec(4, 128, "affine"),
        "e": QuantSpec(4, 64, "affine"),
    }


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "fp8", "mxfp4", "modelopt"])
def test_formats_of_other_libraries_are_named(method: str) -> None:
    with pytest.raises(ConfigError, match=f"quant_method '{method}', not MLX's format; use the"):
        read(quantization_config={"quant_method": method, "bits": 4, "group_size": 128})


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({}, "quantization.bits is missing"),
        ({"bits": 4}, "quantization.group_size is missing"),
        (AFFINE | {"bits": 7}, "quantization.bits is 7; mode affine takes 2, 3, 4, 5, 6, 8"),
        (AFFINE | {"bits": 4.0}, "quantization.bits is 4.0"),
        (AFFINE | {"bits": True}, "quantization.bits is true"),
        (AFFINE | {"group_size": 48}, "group_size is 48; mode affine takes 32, 64, 128"),
        (AFFINE | {"mode": "nf4"}, "mode is 'nf4'; expected one of affine, mxfp4, nvfp4, mxfp8"),
        (AFFINE | {"mode": ["affine"]}, "mode is ['affine']"),
        (AFFINE | {"mode": "mxfp4"}, "group_size is 64; mode mxfp4 takes 32"),
        (AFFINE | {"mode": "mxfp8", "group_size": 32}, "bits is 4; mode mxfp8 takes 8"),
        (AFFINE | {"lm_head": 8}, "'lm_head' is 8; expected an object, true or false"),
        (AFFINE | {"lm_head": {"bits": 9}}, "quantization.'lm_head'.bits is 9"),
        (AFFINE | {"lm_head": {"bit": 8}}, "'bit' is unknown; known: bits, group_size, mode"),
        ([4, 64], "quantization is [4, 64]; expected a JSON object"),
    ],
)
def test_refusal(block: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(quantization=block)
    assert said in str(caught.value)


def test_contradiction() -> None:
    other = AFFINE | {"lm_head": False}
    with pytest.raises(ConfigError, match="quantization_config contradicts quantization"):
        read(quantization=AFFINE, quantization_config=other)
    assert read(quantization=AFFINE, quantization_config=AFFINE | {"mode": "affine"})
