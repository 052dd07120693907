"""What a conversion is asked to do and how it says how far it is. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm_mlx.convert.recipes import Recipe

LAYOUTS = ("mlx", "hf", "chatglm")
# The spelling of options and of config.json -> the spelling of safetensors headers.
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides what a conversion writes, but the source itself.

    Attributes:
        layout: `mlx` (HF names, may be quantized), `hf` or `chatglm` (never quantized).
        recipe: how to quantize, None to leave the weights as they are.
        dtype: float16, bfloat16 or float32 for everything that stays a float; None keeps each
            tensor's own.
        dequantize: unpack a quantized source.
        rope, trust_config: as in `read_config`; the settings are written to the result.
        overwrite: replace a finished conversion of ours, or start an unfinished one over.
        allow_overflow: let values beyond float16 become its largest, +-65504.
        max_shard_bytes: a shard grows to this size, or to that of its only tensor.
        learn: `awq` to scale and clip by what `calibration`, a text file, activates.
        source_name: how the report and the card call the source.
        revision: the commit of a Hub source.
    """

    source_name: str
    layout: str = "mlx"
    recipe: Recipe | None = None
    dtype: str | None = None
    dequantize: bool = False
    rope: Mapping[str, object] | None = None
    trust_config: bool = False
    overwrite: bool = False
    allow_overflow: bool = False
    max_shard_bytes: int = 1 << 30
    learn: str | None = None
    calibration: Path | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far one stage of the work is.

    Attributes:
        stage: checking, measuring, learning, converting or verifying.
        item: the tensor at hand.
    """

    stage: str
    done_bytes: int
    total_bytes: int
    item: str = ""


OnProgress = Callable[[Progress], None]
