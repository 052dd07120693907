"""Tensor names of every checkpoint layout, as data: which rows of which become which of ours.

Ours are the names of the Hugging Face `glm` and `glm4` classes. The 2024 `chatglm` layout differs
in names and stores q, k and v as one matrix; nothing else differs, no row is permuted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from glm_mlx.config import ModelConfig

_CHATGLM = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.output_layer": "lm_head",
}
_CHATGLM_LAYER = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)")
_CHATGLM_MODULES = {
    "input_layernorm": "input_layernorm",
    "self_attention.query_key_value": "self_attn.qkv_proj",
    "self_attention.dense": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
# Rotary frequencies, stored in low precision by some exporters; rebuilt from the config.
_REBUILT = re.compile(r"(.*\.)?(rotary_pos_emb|rotary_emb)\.inv_freq")

# What a tensor name gives away, the telling ones first.
_DIALECTS = (
    ("GLM-4V", re.compile(r"transformer\.vision\.")),
    ("chatglm", re.compile(r"transformer\.encoder\.layers\.")),
    ("a mixture-of-experts GLM", re.compile(r".*\.mlp\.(experts|gate\.weight)")),
    ("glm4", re.compile(r".*\.post_self_attn_layernorm\.")),
    ("a Llama-like model", re.compile(r".*\.mlp\.gate_proj\.")),
    ("glm", re.compile(r"model\.layers\.\d+\.mlp\.gate_up_proj\.")),
)


@dataclass(frozen=True)
class Target:
    """One of our tensors: its name, and the rows of the source it takes (None: all)."""

    name: str
    rows: slice | None = None


def targets_of(source: str, config: ModelConfig) -> tuple[Target, ...]:
    """Our tensors made from checkpoint tensor ``source``; none if it is rebuilt or redundant.

    A name of no known layout maps to itself, so that the loader can report it as unexpected.
    """
    if _REBUILT.fullmatch(source):
        return ()
    path, _, kind = source.rpartition(".")  # kind: weight, bias, scales or biases
    path = _CHATGLM.get(path, path)
    if match := _CHATGLM_LAYER.fullmatch(path):
        index, module = match.groups()
        path = f"model.layers.{index}.{_CHATGLM_MODULES.get(module, module)}"
    if path == "lm_head" and config.tie_word_embeddings:
        return ()
    if not path.endswith(".self_attn.qkv_proj"):
        return (Target(f"{path}.{kind}"),)
    block = path.removesuffix("qkv_proj")
    A, K = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return (
        Target(f"{block}q_proj.{kind}", slice(0, A)),
        Target(f"{block}k_proj.{kind}", slice(A, A + K)),
        Target(f"{block}v_proj.{kind}", slice(A + K, A + 2 * K)),
    )


def source_of(target: str, family: str) -> str:
    """The checkpoint's name for our ``target``: the inverse of `targets_of`, for messages."""
    if family != "chatglm":
        return target
    path, _, kind = target.rpartition(".")
    path = {ours: theirs for theirs, ours in _CHATGLM.items()}.get(path, path)
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", path):
        index, module = match.groups()
        module = re.sub(r"self_attn\.[qkv]_proj", "self_attn.qkv_proj", module)
        theirs = {ours: theirs for theirs, ours in _CHATGLM_MODULES.items()}
        path = f"transformer.encoder.layers.{index}.{theirs.get(module, module)}"
    return f"{path}.{kind}"


def dialect_of(names: Iterable[str]) -> str | None:
    """What architecture the tensor names belong to, or None if nothing gives it away."""
    names = list(names)
    for dialect, pattern in _DIALECTS:
        if any(pattern.match(name) for name in names):
            return dialect
    return None
