"""A text on its way through the float model, with one layer of weights in memory at a time.

What enters each matrix is metered; what learning makes of that is for `awq`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

import mlx.core as mx
import mlx.nn as nn

from glm_mlx.checkpoint import RowReader
from glm_mlx.checkpoint.refusal import quote
from glm_mlx.config import ModelConfig
from glm_mlx.convert.pack import Block, blocks_of, read_block
from glm_mlx.convert.plan import Piece
from glm_mlx.errors import NumericError
from glm_mlx.model.decoder import DecoderLayer
from glm_mlx.model.rope import RotaryEmbedding

HEAD = "lm_head"
EMBEDDING = "model.embed_tokens"
# Those that share an input are metered at the first.
_INPUTS = {
    "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_up_proj",),
    "mlp.down_proj": ("mlp.down_proj",),
}


class Meter(nn.Module, ABC):
    """Stands before a module and observes what enters it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __call__(self, x: mx.array) -> mx.array:
        self.observe(x.reshape(-1, x.shape[-1]))
        return cast(mx.array, self.module(x))

    @abstractmethod
    def observe(self, inputs: mx.array) -> None:
        """Take in ``(L, C)`` inputs, one token each row."""


M = TypeVar("M", bound=Meter)


def matrices_of(layer: str) -> dict[str, tuple[str, ...]]:
    """Return module -> modules that share its input, for the layer at the path ``layer``."""
    return {
        f"{layer}.{first}": tuple(f"{layer}.{module}" for module in sharers)
        for first, sharers in _INPUTS.items()
    }


class Walk:
    """Hidden states of a text in fp32, which go through a layer with each call.

    Attributes:
        hidden: one ``(1, L, E)`` for each row of the text.
    """

    def __init__(
        self,
        reader: RowReader,
        config: ModelConfig,
        pieces: Mapping[str, Piece],
        ids: Sequence[Sequence[int]],
    ) -> None:
        """Stand before the first layer.

        Args:
            config: as the loader resolved it for the checkpoint.
            pieces: by name, in the layout `mlx`.
            ids: the text, as rows of token ids.

        Raises:
            NumericError: here and later, a tensor holds NaN or infinity.
        """
        self._reader = reader
        self._config = config
        self._pieces = pieces
        self._rope = RotaryEmbedding.from_config(config)
        embedding = pieces[f"{EMBEDDING}.weight"]
        self.hidden = [read_rows(reader, embedding, row)[None] for row in ids]

    def pass_layer(
        self, path: str, meter: Callable[[nn.Module], M]
    ) -> tuple[dict[str, mx.array], dict[str, M]]:
        """Run the layer at the path and return its weights by name and its meters by module."""
        own = [piece for name, piece in self._pieces.items() if name.startswith(f"{path}.")]
        weights = {piece.name: read_whole(self._reader, blocks_of(piece)) for piece in own}
        layer = DecoderLayer(self._config)
        layer.load_weights([(name.removeprefix(f"{path}."), w) for name, w in weights.items()])
        meters = {}
        for module in matrices_of(path):
            parent, name = module.removeprefix(f"{path}.").split(".")
            meters[module] = layer[parent][name] = meter(layer[parent][name])
        for i, row in enumerate(self.hidden):
            self.hidden[i] = layer(row, self._rope, 0, "causal", None)
            mx.eval(self.hidden[i])
        return weights, meters

    def reach_head(self, meter: Callable[[nn.Module], M]) -> tuple[mx.array, M]:
        """Return the final norm's weight and the meter of what it puts out."""
        norm = read_whole(self._reader, blocks_of(self._pieces["model.norm.weight"]))
        head = meter(nn.Identity())
        for row in self.hidden:
            head(mx.fast.rms_norm(row, norm, self._config.rms_norm_eps))
        return norm, head


def read_rows(reader: RowReader, piece: Piece, rows: Iterable[int]) -> mx.array:
    """Return single rows of a piece that one tensor makes, in fp32."""
    (segment,) = piece.segments
    return read_whole(reader, (Block(segment, row, row + 1, row) for row in rows))


def read_whole(reader: RowReader, blocks: Iterable[Block]) -> mx.array:
    """Return the rows of all blocks in fp32, evaluated.

    Raises:
        NumericError: naming the tensor that holds NaN or infinity.
    """
    parts = []
    for block in blocks:
        floats, bad = read_block(reader, block)
        if bad:
            info = block.segment.weight
            raise NumericError(
                f"tensor {quote(info.name)} holds NaN or infinite values; download it again",
                file=info.file,
                field=info.name,
            )
        parts.append(floats.astype(mx.float32))
    whole = mx.concatenate(parts)
    mx.eval(whole)
    return whole
