"""What is expected of an error is what happens: noise in one matrix at a time, on real decoders."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from makers.folders import Shape, make_config, make_weights
from mlx.utils import tree_flatten

from glm_mlx.config import parse_config
from glm_mlx.convert.sensitivity import sensitivities
from glm_mlx.load import load_model
from glm_mlx.model.decoder import Decoder

NANO = Path(str(files("glm_mlx.nano")))
SHAPE = Shape(hidden_size=128, intermediate_size=256, num_layers=4)
TEXT_TOKENS = 24
Weights = dict[str, mx.array]


def powers_of(weights: Weights) -> dict[str, float]:
    return {name: mx.mean(mx.square(value)).item() for name, value in weights.items()}


def make_random(family: str) -> tuple[Decoder, Weights]:
    """A decoder whose branches add less than the stream carries, as trained ones do."""
    made = make_weights(SHAPE, sandwich=family == "glm4")
    scale = {"o_proj": 0.2, "down_proj": 0.4, "post_mlp_layernorm": 0.3, "embed_tokens": 2.0}
    weights = {
        name: mx.array(value) * scale.get(name.split(".")[-2], 1.0) for name, value in made.items()
    }
    decoder = Decoder(parse_config(make_config(family, SHAPE)))
    decoder.load_weights(list(weights.items()))
    return decoder, weights


def unpack_nano() -> tuple[Decoder, Weights]:
    packed, config = load_model(NANO, fuse_qkv=False)
    weights: Weights = dict(tree_flatten(packed.parameters()))
    for path, module in packed.named_modules():
        if hasattr(module, "bits"):
            codes, scales, biases = (
                weights.pop(f"{path}.{part}") for part in ("weight", "scales", "biases")
            )
            weights[f"{path}.weight"] = mx.dequantize(
                codes, scales, biases, module.group_size, module.bits
            )
    decoder = Decoder(config)
    decoder.load_weights(list(weights.items()))
    return decoder, weights


def measure(decoder: Decoder, weights: Weights, path: str, ids: mx.array) -> float:
    """Return the KL divergence that 1 % of noise power in one matrix makes."""
    name = f"{path}.weight"
    noise = mx.random.normal(weights[name].shape, key=mx.random.key(1))
    scale = 0.1 * mx.sqrt(mx.mean(mx.square(weights[name])))

    def log_probabilities() -> mx.array:
        logits = decoder(ids)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    before = log_probabilities()
    decoder.load_weights([(name, weights[name] + scale * noise)], strict=False)
    after = log_probabilities()
    decoder.load_weights([(name, weights[name])], strict=False)
    return float(mx.mean(mx.sum(mx.exp(before) * (before - after), axis=-1)).item())


@pytest.mark.parametrize("model", ["nano", "glm4", "glm"])
def test_expected_and_measured_go_together(model: str) -> None:
    decoder, weights = unpack_nano() if model == "nano" else make_random(model)
    ids = mx.random.randint(0, 352, (1, TEXT_TOKENS), key=mx.random.key(0))
    expected = sensitivities(powers_of(weights), decoder.config)
    assert expected.keys() == {n.removesuffix(".weight") for n, w in weights.items() if w.ndim == 2}
    measured = [measure(decoder, weights, path, ids) for path in expected]
    logs = np.log([list(expected.values()), measured])
    assert np.corrcoef(logs)[0, 1] > 0.8


def test_a_head_that_is_the_embedding_counts_as_both() -> None:
    shape = Shape(tied=True)
    weights = {name: mx.array(w) for name, w in make_weights(shape, sandwich=True).items()}
    config = parse_config(make_config("glm4", shape))
    expected = sensitivities(powers_of(weights), config)
    assert expected["model.embed_tokens"] == 2 and "lm_head" not in expected


def test_a_model_of_zeros_has_no_sensitive_layer() -> None:
    weights = {name: mx.zeros(w.shape) for name, w in make_weights(SHAPE, sandwich=False).items()}
    expected = sensitivities(powers_of(weights), parse_config(make_config("glm", SHAPE)))
    assert {weight for path, weight in expected.items() if "layers" in path} == {0.0}
