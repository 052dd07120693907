"""Complete tiny model folders in every layout GLM-4 checkpoints come in, from seeded numbers.

Knows the layouts from their public description only and imports nothing of the package under
test, so that a folder is evidence and not an echo.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from makers.vocabulary import stop_ids, write_tokenizer

DIALECTS = ("chatglm", "glm", "glm4")
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

Matrix = npt.NDArray[np.float32]
FolderMaker = Callable[..., Path]
Tensors = dict[str, mx.array]
Config = dict[str, object]
Quantize = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """What a tiny model is made of; the names are ours, each dialect spells them its own way."""

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    intermediate_size: int = 128
    vocab_size: int = 352
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    bias: bool = True
    tied: bool = False
    partial_rotary_factor: float = 0.5
    rope_theta: float = 1e4
    rope_interleaved: bool = True
    yarn: Mapping[str, object] | None = None


def make_weights(shape: Shape, *, sandwich: bool, seed: int = 0) -> dict[str, Matrix]:
    """Return seeded fp32 weights under the HF names.

    Every layer matters: projections keep the variance of their input, norms and biases are far
    from their trivial values, so that a wrong rotation or a lost bias shows in the logits.
    """
    random = np.random.default_rng(seed)
    E, F, V = shape.hidden_size, shape.intermediate_size, shape.vocab_size
    A, K = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim

    def matrix(rows: int, columns: int) -> Matrix:
        return random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)

    def vector(size: int, centre: float) -> Matrix:
        return centre + np.float32(0.3) * random.standard_normal(size, np.float32)

    weights = {"model.embed_tokens.weight": random.standard_normal((V, E), np.float32)}
    for i in range(shape.num_layers):
        layer = f"model.layers.{i}"
        weights[f"{layer}.input_layernorm.weight"] = vector(E, 1)
        for name, rows in (("q", A), ("k", K), ("v", K)):
            weights[f"{layer}.self_attn.{name}_proj.weight"] = matrix(rows, E)
            if shape.bias:
                weights[f"{layer}.self_attn.{name}_proj.bias"] = vector(rows, 0)
        weights[f"{layer}.self_attn.o_proj.weight"] = matrix(E, A)
        weights[f"{layer}.post_attention_layernorm.weight"] = vector(E, 1)
        weights[f"{layer}.mlp.gate_up_proj.weight"] = matrix(2 * F, E)
        weights[f"{layer}.mlp.down_proj.weight"] = matrix(E, F)
        if sandwich:
            weights[f"{layer}.post_self_attn_layernorm.weight"] = vector(E, 1)
            weights[f"{layer}.post_mlp_layernorm.weight"] = vector(E, 1)
    weights["model.norm.weight"] = vector(E, 1)
    if not shape.tied:
        weights["lm_head.weight"] = matrix(V, E)
    return weights


_CHATGLM_NAMES = (
    ("model.embed_tokens.", "transformer.embedding.word_embeddings."),
    ("model.layers.", "transformer.encoder.layers."),
    (".self_attn.o_proj.", ".self_attention.dense."),
    (".mlp.gate_up_proj.", ".mlp.dense_h_to_4h."),
    (".mlp.down_proj.", ".mlp.dense_4h_to_h."),
    ("model.norm.", "transformer.encoder.final_layernorm."),
    ("lm_head.", "transformer.output_layer."),
)


def to_chatglm(weights: Mapping[str, Matrix], *, rotary_dim: int) -> dict[str, Matrix]:
    """Rename and fuse `glm` weights into the remote-code layout, stale `inv_freq` included."""
    renamed = {"transformer.rotary_pos_emb.inv_freq": np.zeros(rotary_dim // 2, np.float32)}
    for name, value in weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            parts = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            value = np.concatenate(parts)
            name = name.replace("self_attn.q_proj", "self_attention.query_key_value")
        for ours, theirs in _CHATGLM_NAMES:
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


def make_config(dialect: str, shape: Shape, *, spelling: str = "legacy") -> Config:
    """Return the `config.json` of a shape as the dialect's own tools would write it.

    spelling: `legacy` (rope_theta, partial_rotary_factor, rope_scaling) or `parameters`
        (everything inside rope_parameters); the remote-code dialect has only its own.
    """
    config: Config = {
        "model_type": dialect,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "attention_dropout": 0.0,
        "tie_word_embeddings": shape.tied,
        "eos_token_id": stop_ids(),
        "pad_token_id": stop_ids()[0],
        "use_cache": True,
    }
    yarn = None if shape.yarn is None else {"type": "yarn", **shape.yarn}
    if dialect == "chatglm":
        return config | _remote_keys(shape) | ({"rope_scaling": yarn} if yarn else {})
    config |= {
        "architectures": ["GlmForCausalLM" if dialect == "glm" else "Glm4ForCausalLM"],
        "attention_bias": shape.bias,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "torch_dtype": "float32",
        "vocab_size": shape.vocab_size,
    }
    rope = {
        "rope_theta": shape.rope_theta,
        "partial_rotary_factor": shape.partial_rotary_factor,
    }
    if spelling == "parameters":
        kind = {"rope_type": "default"} if shape.yarn is None else {"rope_type": "yarn"}
        return config | {"rope_parameters": {**kind, **rope, **(shape.yarn or {})}}
    return config | rope | {"rope_scaling": yarn}


def _remote_keys(shape: Shape) -> Config:
    return {
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "add_bias_linear": False,
        "add_qkv_bias": shape.bias,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_softmax_in_fp32": True,
        "ffn_hidden_size": shape.intermediate_size,
        "fp32_residual_connection": False,
        "kv_channels": shape.head_dim,
        "layernorm_epsilon": shape.rms_norm_eps,
        "multi_query_attention": True,
        "multi_query_group_num": shape.num_kv_heads,
        "num_layers": shape.num_layers,
        "original_rope": shape.rope_interleaved,
        "padded_vocab_size": shape.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": shape.rope_theta / 10000,
        "seq_length": shape.max_position_embeddings,
        "torch_dtype": "float32",
    }


def quantize_tensors(
    tensors: Tensors, quantize: Quantize, overrides: Mapping[str, Quantize | bool]
) -> Tensors:
    """Quantize every matrix the way `mlx_lm.convert -q` does; an override of False leaves one."""
    packed: Tensors = {}
    for name, value in tensors.items():
        path = name.removesuffix(".weight")
        spec = overrides.get(path, quantize)
        if value.ndim != 2 or isinstance(spec, bool):
            packed[name] = value
            continue
        parts = mx.quantize(value, **spec)
        packed |= {
            f"{path}.{part}": array
            for part, array in zip(("weight", "scales", "biases"), parts, strict=False)
        }
    return packed


def write_tensors(folder: Path, tensors: Tensors, *, shards: int = 1) -> None:
    """Write one safetensors file, or several with their index, names in round robin."""
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = list(tensors)[shard::shards]
        part = {name: tensors[name] for name in names}
        mx.save_safetensors(str(folder / file), part, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_folder(
    folder: Path,
    dialect: str = "glm4",
    *,
    spelling: str = "legacy",
    shards: int = 1,
    quantize: Quantize | None = None,
    overrides: Mapping[str, Quantize | bool] | None = None,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
    edit_config: Callable[[Config], object] | None = None,
    edit_tensors: Callable[[Tensors], object] | None = None,
    **shape_options: object,
) -> Path:
    """Write a complete model folder and return it.

    Args:
        quantize: keywords of `mx.quantize` (group_size, bits, mode) for every matrix.
        overrides: module path, in the folder's own names -> other keywords, or False for none.
        edit_config, edit_tensors: change the config or the tensors in place before they are
            written, to make the folder wrong in one way.
        shape_options: fields of `Shape`.
    """
    shape = Shape(**shape_options)  # type: ignore[arg-type]
    weights = make_weights(shape, sandwich=dialect == "glm4", seed=seed)
    if dialect == "chatglm":
        weights = to_chatglm(weights, rotary_dim=shape.head_dim // 2)
    tensors = {name: mx.array(value).astype(dtype) for name, value in weights.items()}
    config = make_config(dialect, shape, spelling=spelling)
    if quantize is not None:
        tensors = quantize_tensors(tensors, quantize, overrides or {})
        block = {"mode": "affine", **quantize, **(overrides or {})}
        config |= {"quantization": block, "quantization_config": block}
    if edit_config is not None:
        edit_config(config)
    if edit_tensors is not None:
        edit_tensors(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, tensors, shards=shards)
    generation = {
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.8,
        "eos_token_id": stop_ids(),
        "pad_token_id": stop_ids()[0],
    }
    for name, data in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(data, indent=2))
    write_tokenizer(folder, dialect, CHAT_TEMPLATE)
    return folder
