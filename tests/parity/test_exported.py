"""Converted and exported weights in transformers' and mlx-lm's hands: the logits stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from makers.compare import relative_error
from makers.folders import DIALECTS, FolderMaker

from glm_mlx.convert.pipeline import convert_folder
from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.settings import Settings
from glm_mlx.load import load_model

pytestmark = pytest.mark.parity

IDS = np.array([[3, 200, 17, 41, 8, 90, 121, 5, 77]])
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}


def ours(folder: Path) -> Any:
    decoder, _ = load_model(folder)
    return np.array(decoder(mx.array(IDS)))


def theirs(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(IDS)).logits.numpy()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "shape",
    [{}, {"rope_theta": 5e6, "bias": False}, {"yarn": YARN}, {"tied": True, "shards": 3}],
    ids=["plain", "theta", "yarn", "tied"],
)
def test_transformers_computes_the_same_from_an_export(
    make_folder: FolderMaker, tmp_path: Path, dialect: str, shape: dict[str, Any]
) -> None:
    source = make_folder(dialect, **shape)
    settings = Settings(source_name="tiny", layout="hf", max_shard_bytes=100_000)
    convert_folder(source, tmp_path / "hf", settings)
    assert relative_error(theirs(tmp_path / "hf"), ours(source)) < 5e-6


def test_an_export_of_a_quantized_model_computes_what_the_codes_stand_for(
    make_folder: FolderMaker, tmp_path: Path
) -> None:
    source = make_folder("chatglm")
    packed = Settings(source_name="tiny", recipe=Recipe(bits=4))
    convert_folder(source, tmp_path / "packed", packed)
    settings = Settings(source_name="tiny", layout="hf", dequantize=True)
    convert_folder(tmp_path / "packed", tmp_path / "hf", settings)
    assert relative_error(theirs(tmp_path / "hf"), ours(tmp_path / "packed")) < 5e-6
