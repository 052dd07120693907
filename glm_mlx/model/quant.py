"""Module tree to quantized module tree, from a recorded plan; and rows joined across modules.

Decides no bit widths: the plan comes from the config, what is quantized from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from glm_mlx.config import Quantization


def quantize_modules(model: nn.Module, plan: Quantization, names: Container[str]) -> None:
    """Give every module whose scales are among ``names`` its quantized form, in place.

    The arrays of the new modules are placeholders: load the checkpoint's over them.
    """

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        spec = plan.spec_for(path)
        if spec is None or not hasattr(module, "to_quantized") or f"{path}.scales" not in names:
            return False
        return {"bits": spec.bits, "group_size": spec.group_size, "mode": spec.mode}

    nn.quantize(model, class_predicate=choose)


def concatenate_rows(*modules: nn.Module) -> nn.Module | None:
    """Join linear modules of one input width into one, or return None if they are not alike.

    Alike: the same class, the same quantization, the same parameters. Quantization groups run
    along the input, so rows of packed weights, scales and biases concatenate exactly.
    """
    first = modules[0]

    def kind(module: nn.Module) -> tuple[object, ...]:
        quantization = (getattr(module, name, None) for name in ("bits", "group_size", "mode"))
        return type(module), sorted(module.parameters()), *quantization

    if type(first) not in (nn.Linear, nn.QuantizedLinear):
        return None
    if any(kind(module) != kind(first) for module in modules):
        return None
    if type(first) is nn.Linear:
        joined: nn.Module = nn.Linear(1, 1, bias="bias" in first)
    else:
        # A placeholder of one row; MLX packs no row narrower than 32, whatever the group.
        width = max(first.group_size, 32)
        joined = nn.QuantizedLinear(
            width, 1, "bias" in first, first.group_size, first.bits, first.mode
        )
    joined.update(
        {name: mx.concatenate([module[name] for module in modules]) for name in first.parameters()}
    )
    return joined
