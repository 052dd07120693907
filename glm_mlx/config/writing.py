"""A `ModelConfig` as `config.json` of Hugging Face's `glm` and `glm4`, or of the 2024 `chatglm`.

The inverse of reading: what is written reads as the same config, in every reader's spelling. Knows
no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict

from glm_mlx.config.model import NUMBERS, ModelConfig
from glm_mlx.errors import OptionError

_REMOTE_CODE = "modeling_chatglm.ChatGLMForConditionalGeneration"

# Code, packing that no longer holds, and what is written anew in the spelling of the target.
_NOT_COPIED = {
    "auto_map",
    "custom_pipelines",
    "model_file",
    "original_rope",
    "partial_rotary_factor",
    "quantization",
    "quantization_config",
    "rope_parameters",
    "rope_ratio",
    "rope_scaling",
    "rope_theta",
}
# What both spellings call by one name; any other key of the one means nothing in the other.
_SHARED = {
    "attention_dropout",
    "bos_token_id",
    "classifier_dropout",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "label2id",
    "use_cache",
}


def to_glm_config(
    config: ModelConfig, source: Mapping[str, object], *, dtype: str
) -> dict[str, object]:
    """Return `config.json` for transformers' `glm` or `glm4` and for mlx-lm.

    RoPE is spelled twice, since transformers 5 reads `rope_parameters` and all others the flat
    keys. mlx-lm refuses a `glm4` without those, and has defaults of its own for biases and ties.

    Args:
        config: with `attention_bias` settled; its family may be chatglm.
        source: the parsed `config.json` it is from; keys that still hold are kept.
        dtype: of the floats: bfloat16, float16 or float32.
    """
    family = "glm4" if config.family == "glm4" else "glm"
    partial = _partial_rotary_factor(config)
    rope: dict[str, object] = {"rope_theta": config.rope_theta, "partial_rotary_factor": partial}
    scaling = _scaling(config)
    written = {row.glm: getattr(config, name) for name, row in NUMBERS.items()}
    written |= {
        "architectures": ["Glm4ForCausalLM" if family == "glm4" else "GlmForCausalLM"],
        "attention_bias": config.attention_bias,
        "hidden_act": "silu",
        "model_type": family,
        "rope_parameters": {**(scaling or {"rope_type": "default"}), **rope},
        "rope_scaling": scaling,
        **rope,
    }
    if not config.rope_interleaved:
        written["original_rope"] = False
    if config.quantization is not None:
        block = config.quantization.to_json()
        written |= {"quantization": block, "quantization_config": block}
    return _finish(config, source, {"attention_dropout": 0.0, "use_cache": True}, written, dtype)


def to_chatglm_config(
    config: ModelConfig, source: Mapping[str, object], *, dtype: str
) -> dict[str, object]:
    """Return `config.json` for ChatGLM's own code, of the 2024 repositories.

    Arguments as in `to_glm_config`. YaRN is spelled `rope_scaling`, which that code ignores and
    this package reads.

    Raises:
        OptionError: that code computes no such model.
    """
    if reason := _beyond_chatglm(config):
        raise OptionError(
            f"layout chatglm cannot hold this model: {reason}; use hf", field="layout"
        )
    defaults: dict[str, object] = {
        "apply_query_key_layer_scaling": True,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "use_cache": True,
    }
    written = {row.chatglm: getattr(config, name) for name, row in NUMBERS.items()}
    written |= {
        "add_bias_linear": False,
        "add_qkv_bias": config.attention_bias,
        "apply_residual_connection_post_layernorm": False,
        "architectures": ["ChatGLMModel"],
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": _REMOTE_CODE,
            "AutoModelForCausalLM": _REMOTE_CODE,
            "AutoModelForSeq2SeqLM": _REMOTE_CODE,
            "AutoModelForSequenceClassification": (
                "modeling_chatglm.ChatGLMForSequenceClassification"
            ),
        },
        "model_type": "chatglm",
        "multi_query_attention": True,
        "num_hidden_layers": config.num_layers,
        "original_rope": config.rope_interleaved,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": _rope_ratio(config.rope_theta),
    }
    if config.yarn is not None:
        written["rope_scaling"] = _scaling(config)
    return _finish(config, source, defaults, written, dtype)


def _finish(
    config: ModelConfig,
    source: Mapping[str, object],
    defaults: Mapping[str, object],
    written: Mapping[str, object],
    dtype: str,
) -> dict[str, object]:
    """Lay the keys over each other: defaults, the source's that still hold, ours."""
    assert config.attention_bias is not None, "the tensors settle it before anything is written"
    one_spelling = (config.family == "chatglm") is (written["model_type"] == "chatglm")
    kept = {
        key: value
        for key, value in source.items()
        if key in _SHARED or (one_spelling and key not in _NOT_COPIED and not key.startswith("_"))
    }
    ends = {"eos_token_id": list(config.eos_token_ids)} if config.eos_token_ids else {}
    both = {
        "dtype": dtype,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
    }
    return dict(sorted({**defaults, **kept, **written, **ends, **both}.items()))


def _beyond_chatglm(config: ModelConfig) -> str | None:
    if config.family == "glm4":
        return "glm4 has two more norms a layer than ChatGLM's code computes"
    if config.tie_word_embeddings:
        return "its embeddings are tied, which ChatGLM's code does not know"
    if config.rotary_dim != config.head_dim // 2:
        return (
            f"it rotates {config.rotary_dim} of {config.head_dim} elements a head, "
            "ChatGLM's code always half"
        )
    return None


def _scaling(config: ModelConfig) -> dict[str, object] | None:
    return None if config.yarn is None else {"rope_type": "yarn", **asdict(config.yarn)}


def _partial_rotary_factor(config: ModelConfig) -> float:
    """The factor from which every reader's `int(head_dim * factor)` gets the rotary width back."""
    factor = config.rotary_dim / config.head_dim
    exact = int(config.head_dim * factor) == config.rotary_dim
    return factor if exact else math.nextafter(factor, 1)


def _rope_ratio(theta: float) -> float:
    """The ratio of theta, rounded so that one read from a file comes back as it was."""
    ratio = float(f"{theta / 10000:.15g}")
    ratio = ratio if 10000.0 * ratio == theta else theta / 10000
    return int(ratio) if ratio.is_integer() else ratio
