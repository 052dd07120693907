"""Frequencies against published numbers, rotation against a float64 twin."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from makers.compare import relative_error
from makers.folders import FolderMaker

from glm_mlx.config import ModelConfig, Yarn, read_config
from glm_mlx.load import load_model
from glm_mlx.model.rope import RotaryEmbedding, inverse_frequencies

Array = npt.NDArray[np.float64]
ConfigMaker = Callable[..., ModelConfig]

GOLDEN_PAIRS = (0, 1, 2, 16, 30, 31)
GOLDEN = {
    1e4: (1, 0.749894202, 0.562341332, 0.01, 0.00017782794, 0.00013335215),
    5e6: (1, 0.617528737, 0.381341755, 0.000447213621, 5.24463928e-07, 3.23871546e-07),
    1e8: (1, 0.562341332, 0.316227764, 0.0001, 3.16227755e-08, 1.77827939e-08),
}
# YaRN: what multiplies pairs 18 to 29 of 32; below them 1, above them 1 / factor.
RAMP = {
    2.0: ".961539 .923077 .884615 .846154 .807692 .769231 .730769 .692308 .653846 .615385 .576923 "
    ".538462",
    4.0: ".942308 .884615 .826923 .769231 .711538 .653846 .596154 .538462 .480769 .423077 .365385 "
    ".307692",
    8.0: ".932692 .865385 .798077 .730769 .663462 .596154 .528846 .461538 .394231 .326923 .259615 "
    ".192308",
}
YARN = Yarn(factor=4.0, original_max_position_embeddings=256, attention_factor=1.2)
ATTENTION = {2.0: 1.0693147, 4.0: 1.1386294, 8.0: 1.2079442}


@pytest.mark.parametrize("theta", GOLDEN)
def test_plain_frequencies(theta: float) -> None:
    frequencies = np.array(inverse_frequencies(64, theta))
    assert frequencies.shape == (32,)
    # The published numbers are fp32, rounded: a few units of their last place.
    assert frequencies[list(GOLDEN_PAIRS)] == pytest.approx(GOLDEN[theta], rel=1.5e-7)


@pytest.mark.parametrize("factor", RAMP)
def test_yarn_frequencies(factor: float) -> None:
    yarn = Yarn(factor=factor, original_max_position_embeddings=32768, attention_factor=1.0)
    multipliers = np.divide(inverse_frequencies(64, 1e4, yarn), inverse_frequencies(64, 1e4))
    ramp = [float(number) for number in RAMP[factor].split()]
    assert multipliers == pytest.approx([1.0] * 18 + ramp + [1 / factor] * 2, abs=1e-6)


@pytest.mark.parametrize("factor", ATTENTION)
def test_yarn_attention_factor(factor: float, make_folder: FolderMaker) -> None:
    yarn = {"factor": factor, "original_max_position_embeddings": 32768}
    config = read_config(make_folder("glm4", yarn=yarn))
    assert config.yarn is not None
    assert config.yarn.attention_factor == pytest.approx(ATTENTION[factor], abs=5e-8)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("yarn", [None, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("rotary_dim", [4, 8, 16])
@pytest.mark.parametrize("offset", [0, 1, 1000])
def test_rotation(
    interleaved: bool, yarn: Yarn | None, rotary_dim: int, offset: int, make_config: ConfigMaker
) -> None:
    config = make_config(
        rotary_dim=rotary_dim, rope_interleaved=interleaved, rope_theta=5e6, yarn=yarn
    )
    x = np.random.default_rng(0).standard_normal((2, 4, 30, 16))
    expected = rotated(x, offset + np.arange(30.0), config)
    result = np.array(RotaryEmbedding.from_config(config)(mx.array(x, mx.float32), offset))
    # fp32 angles: position x 6e-8 radians off, on elements of a few units.
    assert np.abs(result - expected).max() <= 1e-6 + (offset + 30) * 4e-7
    assert (result[..., rotary_dim:] == x[..., rotary_dim:].astype(np.float32)).all()


def test_each_row_has_its_own_offset(make_config: ConfigMaker) -> None:
    rope = RotaryEmbedding.from_config(make_config())
    x = mx.random.normal((3, 4, 5, 16), key=mx.random.key(0))
    offsets = [0, 7, 100]
    rows = [rope(x[i : i + 1], offset) for i, offset in enumerate(offsets)]
    assert mx.array_equal(rope(x, mx.array(offsets)), mx.concatenate(rows))


def rotated(x: Array, positions: Array, config: ModelConfig) -> Array:
    """Turn the first R elements of `x: (B, H, L, D)`, pair by pair, in float64."""
    R = config.rotary_dim
    angles = np.outer(positions, inverse_frequencies(R, config.rope_theta, config.yarn))
    pairs = (
        np.arange(R).reshape(-1, 2) if config.rope_interleaved else np.arange(R).reshape(2, -1).T
    )
    amplitude = 1.0 if config.yarn is None else config.yarn.attention_factor
    result = x.copy()
    for j, (a, b) in enumerate(pairs):
        cos, sin = amplitude * np.cos(angles[:, j]), amplitude * np.sin(angles[:, j])
        result[..., a] = x[..., a] * cos - x[..., b] * sin
        result[..., b] = x[..., b] * cos + x[..., a] * sin
    return result


def test_halves_are_pairs_in_another_order(make_folder: FolderMaker) -> None:
    """`original_rope: false` pairs element j with j + R/2: reorder q and k rows to get pairs."""
    halves = make_folder("chatglm", rope_interleaved=False, num_layers=1)
    R, D, H, K = 8, 16, 4, 2
    order = np.concatenate([np.arange(R).reshape(2, -1).T.ravel(), np.arange(R, D)])
    rows = [head * D + order for head in range(H + K)]
    rows.append(np.arange((H + K) * D, (H + 2 * K) * D))

    def reorder(tensors: dict[str, mx.array]) -> None:
        for name, value in tensors.items():
            if "query_key_value" in name:
                tensors[name] = value[mx.array(np.concatenate(rows))]

    pairs = make_folder("chatglm", edit_tensors=reorder, num_layers=1)
    ids = mx.arange(3, 60)[None]
    result = load_model(halves)[0](ids)
    assert relative_error(result, load_model(pairs)[0](ids)) <= 1e-5
    assert relative_error(load_model(make_folder("chatglm", num_layers=1))[0](ids), result) > 0.01
