"""GLM's decoder, token ids to logits, top to bottom in the order the data takes.

One decoder serves `glm` (two norms a layer), `glm4` (four: each branch is also normed on its way
out) and the 2024 `chatglm` checkpoints, which are `glm` under other tensor names. Modules carry
the names of the Hugging Face checkpoints. Knows no text and no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from glm_mlx.config import ModelConfig

from .cache import BatchKVCache, KVCache
from .quant import concatenate_rows
from .rope import RotaryEmbedding

Mask = mx.array | str | None


class Decoder(nn.Module):
    """The whole model: ``(B, L)`` token ids to ``(B, L, V)`` logits.

    Callable as mlx-lm calls its models: ``decoder(ids, cache=cache)``. A caller who wants fewer
    logits than tokens calls the two halves, ``decoder.head(decoder.model(ids, cache)[:, -1:])``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        return self.head(self.model(inputs, cache))

    def head(self, hidden: mx.array) -> mx.array:
        """Logits ``(B, L, V)`` of normed hidden states ``(B, L, E)``."""
        if self.config.tie_word_embeddings:
            return cast(mx.array, self.model.embed_tokens.as_linear(hidden))
        return self.lm_head(hidden)

    @property
    def layers(self) -> list[DecoderLayer]:
        """The decoder layers, first to last."""
        return self.model.layers

    def make_cache(
        self, *, left_padding: Sequence[int] | None = None, capacity_tokens: int = 0
    ) -> list[KVCache]:
        """One empty cache a layer.

        Args:
            left_padding: padding tokens at the start of each row, for batches of unequal rows.
            capacity_tokens: room to allocate at the first token; 0 grows on demand.
        """
        if left_padding is None:
            return [KVCache(capacity_tokens) for _ in self.layers]
        return [BatchKVCache(left_padding, capacity_tokens) for _ in self.layers]

    def fuse_qkv(self) -> None:
        """Join q, k and v of each layer into one matrix, in place: one product instead of three.

        Exact: the rows of a matrix, quantized or not, do not depend on each other. A layer whose
        three are quantized differently stays as it is.
        """
        for layer in self.layers:
            layer.self_attn.fuse_qkv()


class Backbone(nn.Module):
    """Everything below the head: ``(B, L)`` ids to normed hidden states ``(B, L, E)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config) for _ in range(config.num_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rope = RotaryEmbedding.from_config(config)

    def __call__(self, inputs: mx.array, cache: Sequence[Any] | None = None) -> mx.array:
        L = inputs.shape[1]
        mask: Mask = "causal" if L > 1 else None
        offset: int | mx.array = 0
        if cache is not None:
            # In full: mlx-lm's own caches have no defaults for these two.
            mask = cache[0].make_mask(L, return_array=False, window_size=None)
            offset = cache[0].offset
        h = self.embed_tokens(inputs)  # (B, L, E)
        for i, layer in enumerate(self.layers):
            h = layer(h, self.rope, offset, mask, None if cache is None else cache[i])
        return cast(mx.array, self.norm(h))


class DecoderLayer(nn.Module):
    """Attention, then feed-forward, each behind a norm and beside a residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, eps = config.hidden_size, config.rms_norm_eps
        self.sandwich = config.family == "glm4"
        self.input_layernorm = nn.RMSNorm(E, eps=eps)
        self.self_attn = Attention(config)
        # Despite its name this is the norm before the feed-forward, in both families.
        self.post_attention_layernorm = nn.RMSNorm(E, eps=eps)
        self.mlp = FeedForward(config)
        if self.sandwich:
            self.post_self_attn_layernorm = nn.RMSNorm(E, eps=eps)
            self.post_mlp_layernorm = nn.RMSNorm(E, eps=eps)

    def __call__(
        self, x: mx.array, rope: RotaryEmbedding, offset: int | mx.array, mask: Mask, cache: Any
    ) -> mx.array:
        attended = self.self_attn(self.input_layernorm(x), rope, offset, mask, cache)
        if self.sandwich:
            attended = self.post_self_attn_layernorm(attended)
        x = x + attended
        fed = self.mlp(self.post_attention_layernorm(x))
        if self.sandwich:
            fed = self.post_mlp_layernorm(fed)
        return x + fed


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K heads of keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, H, K, D = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        bias = bool(config.attention_bias)
        self.num_heads, self.num_kv_heads, self.head_dim = H, K, D
        self.q_proj = nn.Linear(E, H * D, bias=bias)
        self.k_proj = nn.Linear(E, K * D, bias=bias)
        self.v_proj = nn.Linear(E, K * D, bias=bias)
        self.o_proj = nn.Linear(H * D, E, bias=False)

    def fuse_qkv(self) -> None:
        """Replace q_proj, k_proj and v_proj by one qkv_proj, if one module can hold them."""
        fused = concatenate_rows(self.q_proj, self.k_proj, self.v_proj)
        if fused is not None:
            self.qkv_proj = fused
            del self.q_proj, self.k_proj, self.v_proj

    def __call__(
        self, x: mx.array, rope: RotaryEmbedding, offset: int | mx.array, mask: Mask, cache: Any
    ) -> mx.array:
        B, L, _ = x.shape
        H, K, D = self.num_heads, self.num_kv_heads, self.head_dim
        if "qkv_proj" in self:
            qkv = self.qkv_proj(x)
        else:
            qkv = mx.concatenate([self.q_proj(x), self.k_proj(x), self.v_proj(x)], axis=-1)
        qkv = qkv.reshape(B, L, H + 2 * K, D).transpose(0, 2, 1, 3)  # (B, H + 2K, L, D)
        rotated = rope(qkv[:, : H + K], offset)  # queries and keys turn in one call
        queries, keys, values = rotated[:, :H], rotated[:, H:], qkv[:, H + K :]
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)  # (B, K, S, D)
        out = mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=D**-0.5, mask=mask
        )  # (B, H, L, D)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, H * D))


class FeedForward(nn.Module):
    """SwiGLU; the gate's rows come first in ``gate_up_proj``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, F = config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Linear(E, 2 * F, bias=False)
        self.down_proj = nn.Linear(F, E, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)  # 2 x (B, L, F)
        return self.down_proj(swiglu(gate, up))


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


# One kernel on the GPU. On the CPU, compiling needs a C++ compiler on the user's machine.
swiglu = mx.compile(_swiglu, shapeless=True) if mx.metal.is_available() else _swiglu
