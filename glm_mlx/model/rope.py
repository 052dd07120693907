"""Rotary position embedding of the first R of D head elements, plain or stretched by YaRN.

Computes frequencies and applies them; knows nothing of attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx

from glm_mlx.config import ModelConfig, Yarn


def inverse_frequencies(rotary_dim: int, theta: float, yarn: Yarn | None = None) -> list[float]:
    """Return the R/2 angles, in radians, that each position adds to its pair of elements.

    Plain: ``theta ** (-2j / R)``. With YaRN (Peng et al. 2023, as transformers'
    ``modeling_rope_utils.py`` applies it) the slow pairs are divided by ``factor``, the fast ones
    kept, and a linear ramp joins the two. The ramp counts rotary elements (R), not the head
    width (D).
    """
    plain = [theta ** (-2 * j / rotary_dim) for j in range(rotary_dim // 2)]
    if yarn is None:
        return plain

    def pair_turning(rotations: float) -> float:
        """The (fractional) pair that makes so many turns within the original context."""
        context = yarn.original_max_position_embeddings
        return rotary_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_turning(yarn.beta_fast), pair_turning(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    # transformers widens an empty ramp by the same amount instead of dividing by zero.
    width = (high - low) or 0.001
    ramp = [min(max((j - low) / width, 0.0), 1.0) for j in range(rotary_dim // 2)]
    return [f * (1 - r) + f / yarn.factor * r for f, r in zip(plain, ramp, strict=True)]


@dataclass(frozen=True, eq=False)
class RotaryEmbedding:
    """Rotates queries and keys by their positions.

    One instance serves every layer. Frequencies are given to MLX as numbers rather than as a base:
    they are computed in float64 here and rounded once, which matters at theta 1e8 and a million
    positions.
    """

    dims: int
    interleaved: bool
    periods: mx.array  # (R/2,) radians to positions: the reciprocal of the inverse frequencies
    amplitude: mx.array | None  # (D,) YaRN's attention factor on the rotated part, 1 elsewhere

    @classmethod
    def from_config(cls, config: ModelConfig) -> RotaryEmbedding:
        """Build the embedding a model asks for."""
        inverse = inverse_frequencies(config.rotary_dim, config.rope_theta, config.yarn)
        amplitude = None
        if config.yarn is not None and config.yarn.attention_factor != 1.0:
            turned = [config.yarn.attention_factor] * config.rotary_dim
            amplitude = mx.array(turned + [1.0] * (config.head_dim - config.rotary_dim))
        return cls(
            dims=config.rotary_dim,
            interleaved=config.rope_interleaved,
            periods=mx.array([1 / f for f in inverse]),
            amplitude=amplitude,
        )

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Rotate ``x: (B, H, L, D)`` whose first token stands at ``offset`` (int or ``(B,)``).

        Keeps the dtype. Elements R..D pass through unchanged.
        """
        x = mx.fast.rope(
            x,
            self.dims,
            traditional=self.interleaved,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self.periods,
        )
        return x if self.amplitude is None else x * self.amplitude.astype(x.dtype)
