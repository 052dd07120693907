"""`config.json` of chatglm, glm and glm4 to one frozen `ModelConfig`, or a reason why not.

Decides from the file alone. What only the tensors tell, the q/k/v bias of a silent config, stays
None.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glm_mlx.config.quantization import Quantization, read_quantization
from glm_mlx.config.rope import TOKENS, Yarn, caller_settings, read_rotation
from glm_mlx.config.table import Range, Table, shown
from glm_mlx.errors import ConfigError, GLMWarning
from glm_mlx.jsonfile import read_json_object
from glm_mlx.modelfile import find_file

FAMILIES = ("chatglm", "glm", "glm4")


class Number(NamedTuple):
    glm: str  # the key in glm and glm4
    chatglm: str
    limits: Range


NUMBERS = {
    "hidden_size": Number("hidden_size", "hidden_size", Range(int, 1, 1 << 17)),
    "num_layers": Number("num_hidden_layers", "num_layers", Range(int, 1, 1024)),
    "num_heads": Number("num_attention_heads", "num_attention_heads", Range(int, 1, 4096)),
    "num_kv_heads": Number("num_key_value_heads", "multi_query_group_num", Range(int, 1, 4096)),
    "head_dim": Number("head_dim", "kv_channels", Range(int, 2, 4096)),
    "intermediate_size": Number("intermediate_size", "ffn_hidden_size", Range(int, 1, 1 << 20)),
    "vocab_size": Number("vocab_size", "padded_vocab_size", Range(int, 1, 1 << 22)),
    "max_position_embeddings": Number("max_position_embeddings", "seq_length", TOKENS),
    "rms_norm_eps": Number("rms_norm_eps", "layernorm_epsilon", Range(float, 1e-15, 0.1)),
}
_DEFAULT_HEAD_DIM = 128  # in transformers and in chatglm's own code alike

# A key that, when set, makes the model another one than this package computes.
_FOREIGN = {
    "vision_config": "a vision model, GLM-4V or later",
    "text_config": "a part of a multimodal model",
    "n_routed_experts": "a mixture of experts",
    "position_encoding_2d": "ChatGLM-6B, the first generation",
    "pre_seq_len": "a prefix-tuned checkpoint (P-tuning v2)",
    "quantization_bit": "packed in ChatGLM's own integer format",
}
_CHATGLM_2_AND_3_VOCABULARY = 65024

# The only values that this decoder computes.
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "add_bias_linear": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "rmsnorm": (True,),
    "post_layer_norm": (True,),
}

# Written by transformers where nobody chose any: beyond a small vocabulary they mean nothing.
_FIRST_GLM4_ID = 151329
_UNCHOSEN_IDS: dict[str, object] = {
    "eos_token_id": [_FIRST_GLM4_ID, 151336, 151338],
    "pad_token_id": _FIRST_GLM4_ID,
}


@dataclass(frozen=True)
class ModelConfig:
    """A dense text GLM, whatever the spelling of its `config.json`.

    Attributes:
        family: chatglm, glm or glm4; only glm4 has the two extra norms a layer.
        head_dim: width of a head, of which the first `rotary_dim` elements are rotated.
        max_position_embeddings: context limit in tokens, YaRN included.
        attention_bias: whether q, k and v have a bias; None where the config does not say.
        rope_interleaved: rotate pairs (0, 1), (2, 3)... rather than (0, R/2), (1, R/2 + 1)...
        eos_token_ids: the config's own; the tokenizer adds GLM's stop tokens by their text.
    """

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    attention_bias: bool | None
    tie_word_embeddings: bool
    rotary_dim: int
    rope_theta: float
    rope_interleaved: bool
    yarn: Yarn | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    quantization: Quantization | None


def read_config(
    folder: Path, *, rope: Mapping[str, object] | None = None, trust_config: bool = False
) -> ModelConfig:
    """Read `config.json` of a model folder; options and errors as in `parse_config`."""
    file = find_file(folder, "config.json", error=ConfigError) or folder / "config.json"
    data = read_json_object(file, error=ConfigError)
    return parse_config(data, file=file, rope=rope, trust_config=trust_config)


def parse_config(
    data: Mapping[str, object],
    *,
    file: object = "config.json",
    rope: Mapping[str, object] | None = None,
    trust_config: bool = False,
) -> ModelConfig:
    """Turn a parsed `config.json` into a `ModelConfig`.

    RoPE may be spelled `rope_ratio` (chatglm), `rope_theta` and `rope_scaling` (transformers < 5)
    or `rope_parameters` (transformers >= 5); the later wins. Code in the folder is never run: a
    config that asks for it gets a warning, save for the `auto_map` of every chatglm folder.

    Args:
        file: named in errors.
        rope: the caller's settings in the spelling of `rope_parameters`, laid over the file's.
            With YaRN the context limit becomes factor * original_max_position_embeddings.
        trust_config: accept doubtful values without a warning.

    Raises:
        ConfigError: the file makes no sense, or asks for what this package does not compute.
        OptionError: `rope` does.
    """
    asked = caller_settings(rope)
    table = Table(data, file)
    family = _read_family(table)
    numbers = _read_numbers(table, family)
    rotation = read_rotation(
        table,
        asked,
        head_dim=numbers["head_dim"],
        max_position_embeddings=numbers["max_position_embeddings"],
    )
    pad_token_ids = _read_token_ids(table, "pad_token_id", numbers["vocab_size"])
    config = ModelConfig(
        family=family,
        **numbers | {"max_position_embeddings": rotation.max_position_embeddings},
        attention_bias=table.flag("add_qkv_bias" if family == "chatglm" else "attention_bias"),
        tie_word_embeddings=table.flag("tie_word_embeddings") or False,
        rotary_dim=rotation.rotary_dim,
        rope_theta=rotation.theta,
        rope_interleaved=table.flag("original_rope") is not False,
        yarn=rotation.yarn,
        eos_token_ids=_read_token_ids(table, "eos_token_id", numbers["vocab_size"]),
        pad_token_id=pad_token_ids[0] if pad_token_ids else None,
        quantization=read_quantization(table),
    )
    _warn_of_code(table, family)
    if not trust_config and "rope_theta" not in asked:
        _warn_of_lost_rope_ratio(file, config, numbers["max_position_embeddings"])
    return config


def _read_family(table: Table) -> str:
    family = table.data.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        found = shown(family) if table.has("model_type") else "missing"
        table.refuse("model_type", f"is {found}; supported: {', '.join(FAMILIES)}")
    for key, what in _FOREIGN.items():
        if table.data.get(key):
            table.refuse(key, f"is set: this is {what}; supported: dense text GLM-4")
    if table.data.get("padded_vocab_size") == _CHATGLM_2_AND_3_VOCABULARY:
        table.refuse(
            "padded_vocab_size",
            f"is {_CHATGLM_2_AND_3_VOCABULARY}: this is ChatGLM2 or ChatGLM3; supported: GLM-4",
        )
    for key, computed in _FIXED.items():
        value = table.data.get(key)
        if value is not None and not any(
            type(value) is type(one) and value == one for one in computed
        ):
            table.refuse(key, f"is {shown(value)}; this decoder computes {json.dumps(computed[0])}")
    return family


def _read_numbers(table: Table, family: str) -> dict[str, Any]:
    """The sizes under our names. What is missing is said at once, not key by key."""
    chatglm = family == "chatglm"
    keys = {name: row.chatglm if chatglm else row.glm for name, row in NUMBERS.items()}
    if chatglm:
        grouped = table.flag("multi_query_attention")
        if not (table.has(keys["num_kv_heads"]) if grouped is None else grouped):
            keys["num_kv_heads"] = keys["num_heads"]
    needed = [key for name, key in keys.items() if name != "head_dim"]
    missing = [key for key in (*needed, "eos_token_id") if not table.has(key)]
    if missing:
        raise ConfigError(
            f"missing keys: {', '.join(dict.fromkeys(missing))}", file=table.file, field=missing[0]
        )
    numbers = {
        name: table.number(
            keys[name], row.limits, _DEFAULT_HEAD_DIM if name == "head_dim" else None
        )
        for name, row in NUMBERS.items()
    }
    heads, kv_heads = numbers["num_heads"], numbers["num_kv_heads"]
    if heads % kv_heads:
        table.refuse(keys["num_kv_heads"], f"is {kv_heads}, which does not divide {heads} heads")
    return numbers


def _read_token_ids(table: Table, key: str, vocab_size: int) -> tuple[int, ...]:
    unchosen = _UNCHOSEN_IDS[key]
    if table.data.get(key) == unchosen and vocab_size <= _FIRST_GLM4_ID:
        warnings.warn(
            f"{table.file}: {key} {unchosen} is GLM-4's and lies beyond this vocabulary of "
            f"{vocab_size:,}; ignored",
            GLMWarning,
            stacklevel=3,
        )
        return ()
    return table.token_ids(key, vocab_size)


def _warn_of_code(table: Table, family: str) -> None:
    keys = ["model_file"] if family == "chatglm" else ["auto_map", "model_file"]
    asking = [key for key in keys if table.has(key)]
    if asking:
        warnings.warn(
            f"{table.file}: {' and '.join(asking)} ignored; code from a model folder is never run",
            GLMWarning,
            stacklevel=3,
        )


def _warn_of_lost_rope_ratio(file: object, config: ModelConfig, trained_tokens: int) -> None:
    """The official converter of the -hf folders wrote 10000 whatever `rope_ratio` was."""
    if config.family == "glm" and config.rope_theta == 10000.0 and trained_tokens >= 131072:
        warnings.warn(
            f"{file}: rope_theta 10000 is doubtful with {trained_tokens:,} positions: "
            "glm-4-9b-chat was trained with 5e6, glm-4-9b-chat-1m with 1e8; set it with rope, "
            "or keep it with trust_config",
            GLMWarning,
            stacklevel=3,
        )
