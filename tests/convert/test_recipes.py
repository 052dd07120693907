"""A recipe decides as mlx-lm does, leaves no matrix out in silence, and says what it cannot do."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.folders import Shape, make_config
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.models import glm4

from glm_mlx.config import MODES, Quantization, QuantSpec, parse_config
from glm_mlx.convert.recipes import Recipe, parse_size, read_overrides
from glm_mlx.errors import InputFileError, OptionError

MIXED = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
SHORTHANDS = st.one_of(
    st.sampled_from(
        [*MIXED, "mxfp4", "nvfp4", "mxfp8", *(f"{bits}bit" for bits in MODES["affine"]["bits"])]
    ),
    st.integers(21, 160).map(lambda tenths: f"{tenths // 10}.{tenths % 10}bit"),
    st.integers(1, 99).map(lambda size: f"{size}GB"),
)

Matrices = dict[str, tuple[int, int]]


def make_model(layers: int) -> glm4.Model:
    shape = Shape(num_layers=layers, hidden_size=128)
    return glm4.Model(glm4.ModelArgs.from_dict(make_config("glm4", shape)))


def matrices_of(model: nn.Module) -> Matrices:
    return {
        path: module.weight.shape
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }


@pytest.fixture(scope="module")
def matrices() -> Matrices:
    return matrices_of(make_model(2))


def refusal(**options: Any) -> str:
    with pytest.raises(OptionError) as caught:
        Recipe(**options)
    return str(caught.value)


@pytest.mark.parametrize("layers", [1, 2, 3, 7, 8, 9, 16, 40, 61])
@pytest.mark.parametrize("mixed", MIXED)
def test_mixed_recipes_decide_as_mlx_lm(mixed: str, layers: int) -> None:
    model = make_model(layers)
    predicate = mixed_quant_predicate_builder(mixed, model, 32)
    matrices = matrices_of(model)
    ours = Recipe(mixed=mixed, group_size=32).quantization(matrices)
    modules = dict(model.named_modules())
    assert {path: ours.spec_for(path) for path in matrices} == {
        path: QuantSpec(**predicate(path, modules[path])) for path in matrices
    }


@pytest.mark.parametrize("mode", MODES)
def test_uniform_block_is_what_mlx_lm_writes(mode: str, matrices: Matrices) -> None:
    spec = QuantSpec(MODES[mode]["bits"][0], MODES[mode]["group_size"][0], mode)
    assert Recipe(mode=mode).quantization(matrices) == Quantization(spec)


@given(SHORTHANDS)
def test_shorthand_is_the_label_of_what_it_means(text: str) -> None:
    recipe = Recipe.parse(text)
    assert recipe.label == text
    assert hash(recipe) == hash(Recipe.parse(text)) and recipe == Recipe.parse(text)


@given(
    st.dictionaries(
        st.sampled_from(["*", "*.v_proj", "model.layers.1.*", "lm_head", "*.self_attn.?_proj"]),
        st.booleans() | st.sampled_from([{"bits": 8}, {"mode": "mxfp4"}, {"group_size": 32}]),
    ),
    st.sampled_from([None, 6, "none"]),
    st.sampled_from([None, 3, "none"]),
)
def test_every_matrix_has_the_last_decision_that_names_it(
    overrides: dict[str, Any], embed_bits: Any, head_bits: Any
) -> None:
    matrices = {
        f"model.layers.{layer}.self_attn.{name}_proj": (64, 128)
        for layer in range(2)
        for name in "qkvo"
    } | {"model.embed_tokens": (352, 128), "lm_head": (352, 128)}
    plain = Recipe(mixed="mixed_4_6").quantization(matrices)
    recipe = Recipe(
        mixed="mixed_4_6", overrides=overrides, embed_bits=embed_bits, head_bits=head_bits
    )
    expected: dict[str, QuantSpec | None] = {}
    for path in matrices:
        expected[path] = plain.spec_for(path)
        for name, bits in (("model.embed_tokens", embed_bits), ("lm_head", head_bits)):
            if path == name and bits is not None:
                expected[path] = None if bits == "none" else QuantSpec(bits, 64, "affine")
        for pattern, value in overrides.items():
            if not fnmatchcase(path, pattern):
                continue
            if value is True:
                expected[path] = plain.spec_for(path)
            elif value is False:
                expected[path] = None
            elif "mode" in value:
                expected[path] = QuantSpec(4, 32, "mxfp4")
            else:
                expected[path] = QuantSpec(
                    value.get("bits", 4), value.get("group_size", 64), "affine"
                )
    if not any(expected.values()):
        with pytest.raises(OptionError, match="leave nothing to quantize"):
            recipe.quantization(matrices)
        return
    quantization = recipe.quantization(matrices)
    assert {path: quantization.spec_for(path) for path in matrices} == expected
    config = make_config("glm4", Shape()) | {"quantization": quantization.to_json()}
    assert parse_config(config).quantization == quantization


def test_embedding_takes_a_width_that_the_mode_lacks(matrices: Matrices) -> None:
    quantization = Recipe(mode="mxfp4", embed_bits=8, head_bits=4).quantization(matrices)
    assert quantization.overrides == {"model.embed_tokens": QuantSpec(8, 32, "affine")}
    quantization = Recipe(mode="nvfp4", embed_bits="none", head_bits=6).quantization(matrices)
    assert quantization.overrides == {
        "model.embed_tokens": None, "lm_head": QuantSpec(6, 64, "affine"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group_size": 48}, "group size 48 is not supported; use 32, 64 or 128"),
        ({"group_size": 100000}, "group size 100000 is not supported; use 32, 64 or 128"),
        ({"bits": 7}, "bits 7 is not supported; use 2, 3, 4, 5, 6 or 8"),
        ({"bits": 4.0}, "bits 4.0 is not supported"),
        ({"bits": True}, "bits True is not supported"),
        ({"mode": "nf4"}, "mode 'nf4' is not supported; use affine, mxfp4, nvfp4 or mxfp8"),
        ({"mode": "mxfp4", "group_size": 64}, "64 is not supported with mode mxfp4; use 32"),
        ({"mode": "mxfp8", "bits": 4}, "bits 4 is not supported with mode mxfp8; use 8"),
        ({"mixed": "mixed_4_8"}, "mixed recipe 'mixed_4_8' is not supported; use mixed_2_6,"),
        ({"mixed": "mixed_4_6", "bits": 4}, "bits and mixed recipe exclude each other; give one"),
        ({"target_bits": 4, "target_bytes": 9}, "target bits and target bytes exclude each other"),
        ({"mode": "mxfp4", "mixed": "mixed_4_6"}, "mixed recipe needs several widths and mode"),
        ({"mode": "mxfp8", "target_bits": 4.5}, "target bits needs several widths and mode mxfp8"),
        ({"target_bits": 0}, "target bits 0 is not a size; use a number above 0"),
        ({"target_bits": float("nan")}, "target bits nan is not a size"),
        ({"target_bytes": float("inf")}, "target bytes inf is not a size"),
        ({"target_bytes": "5GB"}, "target bytes '5GB' is not a size"),
        ({"embed_bits": 7}, "embed bits 7 is not supported; use 2, 3, 4, 5, 6, 8 or none"),
        ({"head_bits": "no"}, "head bits 'no' is not supported; use 2, 3, 4, 5, 6, 8 or none"),
        ({"overrides": {"a": {"bits": 9}}}, "overrides: 'a' bits 9 is not supported; use 2, 3,"),
        ({"overrides": {"a": {"bit": 8}}}, "overrides: 'a' key 'bit' is not supported; use bits,"),
        ({"overrides": {"a": {"mode": ["x"]}}}, "overrides: 'a' mode ['x'] is not supported"),
        ({"overrides": {"a": 8}}, "overrides: 'a' is 8; expected an object, true or false"),
    ],
)  # fmt: skip
def test_option_refused(options: dict[str, Any], said: str) -> None:
    assert said in refusal(**options)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(overrides={"*.ffn_down": False}), "'*.ffn_down' matches no matrix; the nearest is"),
        (
            Recipe(overrides={"lm_head.weight": False}),
            "'lm_head.weight' matches no matrix; the nearest is lm_head",
        ),
        (Recipe(overrides={"*": False}), "leave nothing to quantize"),
    ],
)
def test_recipe_that_does_not_fit_the_model(recipe: Recipe, said: str, matrices: Matrices) -> None:
    with pytest.raises(OptionError) as caught:
        recipe.quantization(matrices)
    assert said in str(caught.value)


def test_tied_model_has_no_head_of_its_own() -> None:
    with pytest.raises(OptionError, match="head is its embedding; set embed bits"):
        Recipe(head_bits=8).quantization({"model.embed_tokens": (352, 64)})


def test_no_matrix_is_left_out_because_of_its_width() -> None:
    matrices = {f"model.layers.{i}.mlp.down_proj": (64, 96) for i in range(7)} | {
        "lm_head": (9, 64)
    }
    with pytest.raises(OptionError) as caught:
        Recipe().quantization(matrices)
    assert str(caught.value) == (
        "group size 64 does not divide the input width (96) of "
        + ", ".join(f"'model.layers.{i}.mlp.down_proj'" for i in range(5))
        + " and 2 more; use group size 32 or leave them unquantized: false in the overrides"
    )
    kept = Recipe(overrides={"*.down_proj": False}).quantization(matrices)
    assert kept.spec_for("lm_head") and not kept.spec_for("model.layers.6.mlp.down_proj")
    with pytest.raises(OptionError, match=r"\(100\) of 'a'; leave them unquantized"):
        Recipe().quantization({"a": (64, 100)})


@given(
    st.sampled_from([(mode, bits) for mode, of in MODES.items() for bits in of["bits"]]),
    st.integers(1, 24).map(lambda step: 16 * step),
)
def test_whatever_is_decided_can_be_packed(choice: tuple[str, int], width: int) -> None:
    mode, bits = choice
    try:
        quantization = Recipe(mode=mode, bits=bits).quantization({"a": (2, width)})
    except OptionError:
        assert width % MODES[mode]["group_size"][0]
        return
    mx.eval(*mx.quantize(mx.ones((2, width)), **vars(quantization.default)))


def test_overrides_file(tmp_path: Path) -> None:
    file = tmp_path / "overrides.json"
    rules = {"*.v_proj": {"bits": 8}, "lm_head": False}
    file.write_text(json.dumps(rules))
    assert read_overrides(file) == rules
    Recipe(overrides=read_overrides(file))
    file.write_text("[1]")
    with pytest.raises(InputFileError, match="holds a list; expected a JSON object"):
        read_overrides(file)
    with pytest.raises(InputFileError, match="file not found"):
        read_overrides(tmp_path / "absent.json")


def test_sizes() -> None:
    assert parse_size("5GB") == 5_000_000_000
    assert parse_size("4.5GiB") == 9 << 29
    assert parse_size(" 800 mb ") == 800_000_000
    assert parse_size("0.1kB") == 100


@pytest.mark.parametrize("text", ["", "5", "5G", "GB", "-5GB", "1e3MB", "5.GB", "٣GB", "9" * 5000])
def test_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="write it like 5GB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "4", "4 bit", "fourbit", "4.bit", "mixed", "٣bit"])
def test_no_shorthand(text: str) -> None:
    with pytest.raises(OptionError, match="is unknown; write 4bit, affine, mxfp4"):
        Recipe.parse(text)


def test_shorthand_of_a_width_that_mlx_lacks() -> None:
    with pytest.raises(OptionError, match="bits 7 is not supported; use 2, 3, 4, 5, 6 or 8"):
        Recipe.parse("7bit")
