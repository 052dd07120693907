"""The decoder as a model class of mlx-lm, so that mlx-lm's loader and tools can drive it.

Imports nothing of mlx-lm: its loader asks for two classes and duck-types them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import mlx.core as mx

from glm_mlx.config import ModelConfig, parse_config

from .decoder import Decoder
from .names import targets_of


@dataclass(frozen=True)
class ModelArgs:
    """A config in the wrapping mlx-lm's loader expects."""

    config: ModelConfig

    @classmethod
    def from_dict(cls, params: Mapping[str, object]) -> Self:
        """Read a raw ``config.json`` dictionary; raises `ConfigError`."""
        return cls(parse_config(params))


class Model(Decoder):
    """The decoder, q, k and v apart as adapters name them."""

    def __init__(self, args: ModelArgs) -> None:
        self.infer_bias = args.config.attention_bias is None
        super().__init__(
            replace(args.config, attention_bias=args.config.attention_bias is not False)
        )
        self.args = args
        self.model_type = args.config.family

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Rename and split checkpoint tensors of any of the three layouts."""
        renamed = {
            target.name: array if target.rows is None else array[target.rows]
            for name, array in weights.items()
            for target in targets_of(name, self.config)
        }
        if self.infer_bias and not any(name.endswith(".q_proj.bias") for name in renamed):
            for layer in self.layers:
                attention = layer.self_attn
                del attention.q_proj.bias, attention.k_proj.bias, attention.v_proj.bias
        return renamed


def mlx_lm_classes(config: Mapping[str, object]) -> tuple[type[Model], type[ModelArgs]]:
    """Give mlx-lm's loader our decoder, for GLM checkpoints of all three layouts.

    Pass it as ``get_model_classes`` to ``mlx_lm.utils.load_model``::

        model, config = mlx_lm.utils.load_model(path, get_model_classes=glm_mlx.mlx_lm_classes)

    The model then works in ``mlx_lm.generate``, ``mlx_lm.lora`` and the prompt cache functions;
    not in ``mlx_lm.batch_generate``, which needs caches of its own kind.

    Raises:
        ConfigError: if ``config`` is not of a GLM model this package computes.
    """
    parse_config(config, trust_config=True)
    return Model, ModelArgs
