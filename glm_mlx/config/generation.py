"""`generation_config.json` to the sampling values used where a caller gives none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_mlx.config.table import Range, Table
from glm_mlx.errors import ConfigError
from glm_mlx.jsonfile import read_json_object
from glm_mlx.modelfile import find_file

_LARGEST_VOCABULARY = 1 << 22
_RANGES = {
    "temperature": Range(float, 0, 100),
    "top_p": Range(float, 1e-6, 1),
    "top_k": Range(int, 0, _LARGEST_VOCABULARY),
    "min_p": Range(float, 0, 1),
    "repetition_penalty": Range(float, 1e-3, 1e3),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling values for callers who give none; None is off.

    The values here are those of GLM-4's own 2024 `chat()`. They hold where
    `generation_config.json` is absent or says nothing of sampling.
    """

    temperature: float | None = 0.8
    top_p: float | None = 0.8
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] = ()


def read_generation_config(folder: Path) -> GenerationDefaults:
    """Read the sampling defaults of a model folder.

    `do_sample: false` is temperature 0. A file that speaks of sampling is taken at its word: what
    it leaves out is off (temperature 1). Unknown keys are ignored.

    Raises:
        ConfigError: the file is there, and damaged or out of range.
    """
    file = find_file(folder, "generation_config.json", error=ConfigError)
    if file is None:
        return GenerationDefaults()
    table = Table(read_json_object(file, error=ConfigError), file)
    given: dict[str, Any] = {
        key: table.number(key, limits) for key, limits in _RANGES.items() if table.has(key)
    }
    samples = table.flag("do_sample")
    if samples is not None or given.keys() - {"repetition_penalty"}:
        given = {"temperature": 1.0, "top_p": None} | given
    if samples is False:
        given["temperature"] = 0.0
    eos_token_ids = table.token_ids("eos_token_id", _LARGEST_VOCABULARY)
    return GenerationDefaults(**given, eos_token_ids=eos_token_ids)
