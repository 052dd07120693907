"""The transforms of a learned conversion on disk: a safetensors file of small vectors.

They stay beside the weights, so that an interrupted conversion need not learn again and a finished
one can be made again and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import mlx.core as mx

from glm_mlx.checkpoint.header import read_header
from glm_mlx.checkpoint.layout import TensorSpec, plan_shards
from glm_mlx.checkpoint.writer import ShardWriter
from glm_mlx.config import ModelConfig
from glm_mlx.convert.pack import Transform
from glm_mlx.convert.settings import Settings
from glm_mlx.errors import CheckpointError, InputFileError
from glm_mlx.modelfile import find_file
from glm_mlx.text import Tokenizer

LEARNED = "learned.safetensors"
_ROW_TOKENS = 512
_MOST_ROWS = 16


def write_transforms(folder: Path, transforms: Mapping[str, Transform]) -> str:
    """Write the transforms of all pieces, atomically, and return the file's sha256."""
    arrays = {
        f"{name}.{field.name}": array
        for name, transform in transforms.items()
        for field in fields(transform)
        if (array := getattr(transform, field.name)) is not None
    }
    specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
    (plan,) = plan_shards([specs], max_bytes=1 << 62, file_format="mlx")
    with ShardWriter(folder, replace(plan, file_name=LEARNED)) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
        return writer.finish()


def read_transforms(folder: Path) -> dict[str, Transform]:
    """Return piece name -> transform; empty where nothing was learned.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = find_file(folder, LEARNED, error=CheckpointError)
    if file is None:
        return {}
    read_header(file)  # so that a damaged file is refused by its name
    import numpy as np

    found: dict[str, dict[str, object]] = {}
    loaded = mx.load(str(file))
    assert isinstance(loaded, dict)
    for key, array in loaded.items():
        name, _, kind = key.rpartition(".")
        found.setdefault(name, {})[kind] = np.array(array)
    return {name: Transform(**parts) for name, parts in found.items()}  # type: ignore[arg-type]


def calibration_ids(folder: Path, config: ModelConfig, settings: Settings) -> list[list[int]]:
    """Return the calibration text's beginning: at most 16 rows of 512 tokens, each with the prefix.

    Raises:
        InputFileError: the file is not UTF-8, or holds less than one row.
    """
    file, raw = settings.calibration, settings.calibration_bytes
    assert raw is not None, "the caller has asked for a text"
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise InputFileError(f"not UTF-8 at byte {cause.start:,}", file=file) from cause
    tokenizer = Tokenizer.from_folder(folder, vocab_size=config.vocab_size, family=config.family)
    prefix = tokenizer.encode("")
    ids = tokenizer.encode(text, prefix=False, parse_special=False)
    step = _ROW_TOKENS - len(prefix)
    rows = [prefix + ids[i : i + step] for i in range(0, len(ids) - step + 1, step)][:_MOST_ROWS]
    if not rows:
        raise InputFileError(
            f"holds {len(ids):,} tokens; a calibration text needs {step:,} or more", file=file
        )
    return rows
