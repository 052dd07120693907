"""The files of a converted folder that hold no weights and say nothing of the conversion.

Puts together what the config and text rooms write; the same model and settings give the same
bytes. Reads the source folder, writes nothing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from glm_mlx.config import (
    ModelConfig,
    Quantization,
    read_generation_config,
    to_chatglm_config,
    to_glm_config,
)
from glm_mlx.errors import ConfigError, GLMWarning, InputFileError, OptionError
from glm_mlx.jsonfile import MAX_BYTES, read_json_object
from glm_mlx.modelfile import own_file, read_file
from glm_mlx.text.files import tokenizer_files
from glm_mlx.text.tokenizer import STOP_TOKENS

LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "MODEL_LICENSE", "MODEL_LICENSE.txt", "NOTICE")


def model_files(
    source: Path,
    config: ModelConfig,
    *,
    layout: str,
    quantization: Quantization | None,
    dtype: str,
) -> dict[str, bytes]:
    """Return config, generation config, tokenizer, chat template and licence of a layout by name.

    Code is never copied: to run a `chatglm` folder with ChatGLM's own code, add its .py files.

    Args:
        source: the model folder that is converted.
        config: read from it, the caller's RoPE settings laid over it, `attention_bias` settled.
        layout: mlx or hf, both with the files of transformers, or chatglm, with those of 2024.
        quantization: of the result.
        dtype: of the result's floats: bfloat16, float16 or float32.

    Raises:
        OptionError: the layout has no words for the model.
        InputFileError: a file of the source is damaged, missing or a link out of the folder. A
            licence that cannot be read is a warning, and left out.
    """
    config_file = _config_file(source, config, layout, quantization, dtype)
    files, ids = tokenizer_files(
        source, layout=layout, family=config.family, vocab_size=config.vocab_size
    )
    files["config.json"] = config_file
    files["generation_config.json"] = _generation_file(source, config, ids)
    for name in LICENCES:
        try:
            licence = read_file(source, name, error=InputFileError, max_bytes=MAX_BYTES)
        except InputFileError as cause:
            warnings.warn(f"a licence of the source is left out: {cause}", GLMWarning, stacklevel=3)
        else:
            if licence is not None:
                files[name] = licence
    return dict(sorted(files.items()))


def _config_file(
    source: Path, config: ModelConfig, layout: str, quantization: Quantization | None, dtype: str
) -> bytes:
    data = read_json_object(own_file(source, "config.json", error=ConfigError), error=ConfigError)
    config = replace(config, quantization=quantization)
    if layout == "chatglm":
        if config.yarn is not None:
            warnings.warn(
                "ChatGLM's own code knows no YaRN and will ignore rope_scaling; glm-mlx reads it",
                GLMWarning,
                stacklevel=4,
            )
        return _json(to_chatglm_config(config, data, dtype=dtype))
    if layout == "hf" and not config.rope_interleaved:
        raise OptionError(
            "layout hf cannot hold this model: its original_rope is false, and transformers' glm "
            "rotates neighbouring pairs only; use mlx or chatglm",
            field="layout",
        )
    return _json(to_glm_config(config, data, dtype=dtype))


def _generation_file(source: Path, config: ModelConfig, ids: Mapping[str, int]) -> bytes:
    """The source's own, once it reads without complaint, or GLM-4's defaults and stop tokens."""
    defaults = read_generation_config(source)
    name = "generation_config.json"
    raw = read_file(source, name, error=ConfigError, max_bytes=MAX_BYTES)
    if raw is not None:
        return raw
    stops = [*config.eos_token_ids, *(ids[text] for text in STOP_TOKENS if text in ids)]
    made = {key: value for key, value in asdict(defaults).items() if value}
    made |= {"do_sample": True, "pad_token_id": config.pad_token_id}
    return _json(made | ({"eos_token_id": list(dict.fromkeys(stops))} if stops else {}))


def _json(data: Mapping[str, object]) -> bytes:
    return json.dumps(data, indent=2).encode() + b"\n"
