"""How much an error in each matrix moves the output, judged from the weights alone.

Knows powers (mean squares) of tensors, by name; reading them is for others.
"""

from __future__ import annotations

from collections.abc import Mapping

from glm_mlx.config import ModelConfig
from glm_mlx.convert.recipes import EMBEDDING, HEAD

_MIXED = 0.5  # of the power of the values is left when attention has averaged over tokens
_GATED = 0.36  # E[silu(z)^2] of a normal z
# Noise in the scores moves only where attention looks; a gate and its other half are two factors.
_ATTENTION = {"q_proj": 0.5, "k_proj": 0.5, "v_proj": 1.0, "o_proj": 1.0}
_FEED_FORWARD = {"gate_up_proj": 2.0, "down_proj": 1.0}


def sensitivities(powers: Mapping[str, float], config: ModelConfig) -> dict[str, float]:
    """Return module path -> noise at the output over the noise in the matrix, both as powers.

    Both relative to the signal they disturb, so that the sum over modules of sensitivity times
    relative squared error is the relative noise power of the logits. That errors add up so is
    the linearity theorem of HIGGS (arXiv:2411.17525), which measures its coefficients on data;
    here they come from a mean-field view of the decoder. Elements are taken as independent, so
    that powers add and multiply. Noise in a branch counts for the branch's share in the residual
    stream, and from there on stays what it is, since every later branch passes on as much of it
    as it adds of signal.

    Args:
        powers: tensor name -> mean square of its elements.
    """
    weights = {EMBEDDING: 1.0, HEAD: 1.0}
    stream = powers[f"{EMBEDDING}.weight"]
    for index in range(config.num_layers):
        layer = f"model.layers.{index}."
        for branch, modules, added in (
            ("self_attn.", _ATTENTION, _attention_power(powers, layer, config)),
            ("mlp.", _FEED_FORWARD, _feed_forward_power(powers, layer, config)),
        ):
            stream += added
            share = added / stream if stream else 0.0
            weights |= {f"{layer}{branch}{name}": share * part for name, part in modules.items()}
    if config.tie_word_embeddings:
        weights[EMBEDDING] += weights.pop(HEAD)
    return weights


def _attention_power(powers: Mapping[str, float], layer: str, config: ModelConfig) -> float:
    if config.family == "glm4":  # the norm on the branch's way out sets its power
        return powers[f"{layer}post_self_attn_layernorm.weight"]
    attention = f"{layer}self_attn."
    normed = powers[f"{layer}input_layernorm.weight"]
    values = config.hidden_size * powers[f"{attention}v_proj.weight"] * normed
    values += powers.get(f"{attention}v_proj.bias", 0.0)
    width = config.num_heads * config.head_dim
    return width * powers[f"{attention}o_proj.weight"] * _MIXED * values


def _feed_forward_power(powers: Mapping[str, float], layer: str, config: ModelConfig) -> float:
    if config.family == "glm4":
        return powers[f"{layer}post_mlp_layernorm.weight"]
    normed = powers[f"{layer}post_attention_layernorm.weight"]
    half = config.hidden_size * powers[f"{layer}mlp.gate_up_proj.weight"] * normed
    return config.intermediate_size * powers[f"{layer}mlp.down_proj.weight"] * _GATED * half * half
