"""What a conversion is asked to do and how it says how far it is. Knows no model."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_mlx.errors import InputFileError

if TYPE_CHECKING:
    from glm_mlx.convert.recipes import Recipe

LAYOUTS = ("mlx", "hf", "chatglm")
# The spelling of options and of config.json -> the spelling of safetensors headers.
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_CALIBRATION_LIMIT_BYTES = 64 << 20


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
        learn: `awq` to scale columns by what `calibration`, a text file, activates.
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

    def described(self) -> dict[str, Any]:
        """What decides the bits of the result, as JSON, defaults of the recipe written out.

        What was left alone is left out.

        Raises:
            InputFileError: the calibration text cannot be read.
        """
        recipe = {} if self.recipe is None else asdict(self.recipe.resolved)
        text = self.calibration_bytes
        options = {
            "layout": self.layout,
            "dtype": self.dtype,
            "dequantize": self.dequantize or None,
            "rope": self.rope and dict(self.rope),
            "allow_overflow": self.allow_overflow or None,
            "max_shard_bytes": self.max_shard_bytes,
            "learn": self.learn,
            "calibration": None if text is None else hashlib.sha256(text).hexdigest(),
        }
        return {key: value for key, value in (recipe | options).items() if value not in (None, {})}

    @cached_property
    def calibration_bytes(self) -> bytes | None:
        """The calibration text, read once so that what is learned is what the report names.

        Raises:
            InputFileError: it cannot be read, is not a regular file, or is too large.
        """
        file = self.calibration
        if file is None:
            return None
        try:
            if not stat.S_ISREG(file.stat().st_mode):  # a named pipe would block for ever
                raise InputFileError("is not a regular file; give a text file", file=file)
            with file.open("rb") as stream:
                content = stream.read(_CALIBRATION_LIMIT_BYTES + 1)
        except OSError as cause:
            raise InputFileError(f"cannot be read: {cause.strerror}", file=file) from cause
        if len(content) > _CALIBRATION_LIMIT_BYTES:
            raise InputFileError(
                f"is larger than {_CALIBRATION_LIMIT_BYTES:,} bytes, the limit for a calibration "
                "text; give its beginning",
                file=file,
            )
        return content


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
