"""Learned factors change no function, only how well it survives packing."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from makers.folders import write_folder
from mlx.utils import tree_flatten

from glm_mlx.checkpoint import Checkpoint
from glm_mlx.config import ModelConfig, Quantization, QuantSpec
from glm_mlx.convert.awq import learn_transforms
from glm_mlx.convert.pack import Transform
from glm_mlx.convert.settings import Progress
from glm_mlx.errors import NumericError
from glm_mlx.load import load_model
from glm_mlx.model.decoder import Decoder
from glm_mlx.text import Tokenizer

NANO = Path(__file__).parents[2] / "glm_mlx" / "nano"
SCRIPTS = Path(__file__).parents[2] / "examples" / "train_nano"
THREE_BITS = Quantization(QuantSpec(3, 64, "affine"))
IDS = np.random.default_rng(0).integers(0, 300, (3, 24)).tolist()


def learn(
    folder: Path,
    quantization: Quantization = THREE_BITS,
    ids: Sequence[Sequence[int]] = IDS,
    **options: Any,
) -> dict[str, Transform]:
    _, config = load_model(folder)
    return learn_transforms(Checkpoint.open(folder), config, quantization, ids, **options)


def floats_of(folder: Path) -> tuple[Decoder, dict[str, mx.array]]:
    """An unquantized decoder of the folder, and its parameters in fp32."""
    packed, config = load_model(folder, fuse_qkv=False)
    parameters: dict[str, mx.array] = {}
    for path, module in packed.named_modules():
        if hasattr(module, "scales"):
            spec = (module.group_size, module.bits, module.mode)
            floats = mx.dequantize(module.weight, module.scales, module.biases, *spec)
            parameters[f"{path}.weight"] = floats.astype(mx.float32)
    for name, array in tree_flatten(packed.parameters()):
        if not name.endswith((".scales", ".biases")):
            parameters.setdefault(name, array.astype(mx.float32))
    return filled(config, parameters), parameters


def filled(config: ModelConfig, parameters: Mapping[str, mx.array]) -> Decoder:
    decoder = Decoder(replace(config, quantization=None))
    decoder.load_weights(list(parameters.items()))
    return decoder


def transformed(
    parameters: Mapping[str, mx.array], transforms: Mapping[str, Transform]
) -> dict[str, mx.array]:
    return {
        name: transforms[name].apply(array, 0) if name in transforms else array
        for name, array in parameters.items()
    }


@pytest.mark.parametrize(
    ("dialect", "shape"),
    [
        ("glm4", {}),
        ("glm4", {"num_kv_heads": 1, "num_heads": 4, "bias": False}),
        ("glm", {"tied": True}),
        ("glm", {"num_kv_heads": 4}),
        ("chatglm", {}),
    ],
)
def test_the_function_stays(tmp_path: Path, dialect: str, shape: dict[str, Any]) -> None:
    folder = write_folder(tmp_path / "m", dialect, **shape)
    decoder, parameters = floats_of(folder)
    transforms = learn(folder)
    # Steps of 0.1 in the exponents: a factor that is not 1 shows that there was a choice.
    moved = [t for t in transforms.values() if t.columns is not None and np.ptp(t.columns) > 0.01]
    assert len(moved) > 4
    ids = mx.array(IDS)
    expected = decoder(ids)
    found = filled(decoder.config, transformed(parameters, transforms))(ids)
    assert mx.max(mx.abs(found - expected)).item() < 1e-5 * mx.max(mx.abs(expected)).item()


def test_a_norm_in_bfloat16_loses_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "glm4", dtype=mx.bfloat16)
    _, parameters = floats_of(folder)
    transforms = learn(folder)
    pairs = {
        "input_layernorm": "self_attn.q_proj",
        "post_attention_layernorm": "mlp.gate_up_proj",
    }
    for norm, matrix in pairs.items():
        name = f"model.layers.0.{norm}.weight"
        stored = transforms[name].apply(parameters[name], 0).astype(mx.bfloat16)
        columns = transforms[f"model.layers.0.{matrix}.weight"].columns
        product = stored.astype(mx.float32) * mx.array(columns)
        assert mx.allclose(product, parameters[name], rtol=1e-6, atol=0).item()
        assert not mx.array_equal(stored.astype(mx.float32), parameters[name]).item()


def divergence(reference: mx.array, found: mx.array) -> float:
    """Mean KL of two ``(B, L, V)`` logits, in nats a token."""
    p = reference - mx.logsumexp(reference, axis=-1, keepdims=True)
    q = found - mx.logsumexp(found, axis=-1, keepdims=True)
    return float(mx.mean(mx.sum(mx.exp(p) * (p - q), axis=-1)).item())


def dialogues(count: int, seed: int, *, test: bool) -> list[list[int]]:
    """Token ids of the embedded model's own kind of dialogue, learnt or held out."""
    tokenizer = Tokenizer.from_folder(NANO, vocab_size=1600, family="glm4")
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    try:
        corpus = import_module("corpus")
        rng, rows = Random(seed), []
        while len(rows) < count:
            drawn = corpus.dialogue(rng, test=test)
            if not drawn.text:
                prompt = tokenizer.encode_chat(drawn.messages, tools=drawn.tools)
                said = "\n" + drawn.completions[0] + drawn.stop
                rows.append(prompt + tokenizer.encode(said, prefix=False))
        return rows
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SCRIPTS)):
                del sys.modules[name]


@pytest.mark.slow
def test_the_embedded_model_keeps_more_at_three_bits() -> None:
    """Of 192 dialogues, as the gain is four standard errors there and lost in the noise of 32."""
    decoder, parameters = floats_of(NANO)
    held_out = [mx.array([row]) for row in dialogues(192, 5, test=True)]
    expected = [decoder(row) for row in held_out]
    mx.eval(expected)
    transforms = learn(NANO, ids=dialogues(24, 3, test=False))

    def loss(weights: Mapping[str, mx.array]) -> float:
        packed = filled(decoder.config, weights)
        nn.quantize(packed, group_size=64, bits=3)
        pairs = zip(held_out, expected, strict=True)
        tokens = sum(row.size for row in held_out)
        return sum(row.size * divergence(logits, packed(row)) for row, logits in pairs) / tokens

    learned, plain = loss(transformed(parameters, transforms)), loss(parameters)
    assert learned < plain, f"{learned:.5f} after learning, {plain:.5f} before"


def test_loud_channels_keep_their_precision(tmp_path: Path) -> None:
    def shout(tensors: dict[str, mx.array]) -> None:
        for name, array in tensors.items():
            if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
                array[::29] *= 20

    folder = write_folder(
        tmp_path / "m", "glm4", hidden_size=128, intermediate_size=256, edit_tensors=shout
    )
    decoder, parameters = floats_of(folder)
    held_out = mx.array(np.random.default_rng(1).integers(0, 300, (4, 32)))

    def loss(weights: Mapping[str, mx.array]) -> float:
        packed = filled(decoder.config, weights)
        nn.quantize(packed, group_size=64, bits=4)
        return divergence(decoder(held_out), packed(held_out))

    four_bits = Quantization(QuantSpec(4, 64, "affine"))
    learned = transformed(parameters, learn(folder, four_bits))
    assert loss(learned) < 0.9 * loss(parameters)


def test_twice_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "glm4")
    first, second = learn(folder), learn(folder)
    assert first.keys() == second.keys()
    for name, transform in first.items():
        for kind in ("rows", "columns"):
            assert np.array_equal(getattr(transform, kind), getattr(second[name], kind)), name


@pytest.mark.parametrize(
    ("spec"), [QuantSpec(4, 32, "mxfp4"), QuantSpec(4, 16, "nvfp4"), QuantSpec(8, 32, "mxfp8")]
)
def test_other_modes_learn_too(tmp_path: Path, spec: QuantSpec) -> None:
    transforms = learn(write_folder(tmp_path / "m", "glm4"), Quantization(spec))
    assert all(np.isfinite(t.columns).all() for t in transforms.values() if t.columns is not None)
    assert "model.layers.1.mlp.down_proj.weight" in transforms


def test_what_is_not_packed_is_left_alone(tmp_path: Path) -> None:
    kept = {"model.layers.0.mlp.down_proj": None, "lm_head": None}
    transforms = learn(write_folder(tmp_path / "m", "glm4"), replace(THREE_BITS, overrides=kept))
    assert not transforms.keys() & {"model.norm.weight", "lm_head.weight"}
    assert "model.layers.0.mlp.down_proj.weight" not in transforms
    assert transforms["model.layers.0.mlp.gate_up_proj.weight"].rows is None


def test_progress_ends_at_the_layers_bytes(tmp_path: Path) -> None:
    seen: list[Progress] = []
    learn(write_folder(tmp_path / "m", "glm4", num_layers=3), on_progress=seen.append)
    assert [p.item for p in seen] == [f"model.layers.{i}" for i in range(3)]
    assert seen[-1].done_bytes == seen[-1].total_bytes


def test_a_nan_is_named(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def spoil(tensors: dict[str, mx.array]) -> None:
        tensors[name][3, 5] = mx.nan

    with pytest.raises(NumericError, match=name):
        learn(write_folder(tmp_path / "m", "glm4", edit_tensors=spoil))


def test_memory_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    peaks = []
    for layers in (2, 8):
        folder = write_folder(
            tmp_path / str(layers), "glm4", num_layers=layers, hidden_size=256,
            intermediate_size=768,
        )  # fmt: skip
        _, config = load_model(folder)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        learn_transforms(Checkpoint.open(folder), config, THREE_BITS, IDS)
        peaks.append(mx.get_peak_memory() - before)
    layer_bytes = 4 * (256 * 3 * 768 + 2 * 256 * 64)
    assert peaks[1] < peaks[0] + layer_bytes / 4
