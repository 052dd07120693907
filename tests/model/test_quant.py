"""Quantized folders of every mode: the same function as their dequantized twins, fused or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from makers.compare import relative_error
from makers.folders import DIALECTS, FolderMaker, Tensors

from glm_mlx.load import load_model
from glm_mlx.model.quant import concatenate_rows

MODES: dict[str, dict[str, Any]] = {
    **{f"affine{bits}": {"bits": bits, "group_size": 64} for bits in (2, 3, 4, 5, 6, 8)},
    "affine4-group32": {"bits": 4, "group_size": 32},
    "mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
    "nvfp4": {"bits": 4, "group_size": 16, "mode": "nvfp4"},
    "mxfp8": {"bits": 8, "group_size": 32, "mode": "mxfp8"},
}
LAYER = "model.layers.1"
MIXED: dict[str, Mapping[str, Any] | bool] = {
    f"{LAYER}.self_attn.q_proj": {"bits": 8, "group_size": 32, "mode": "affine"},
    f"{LAYER}.self_attn.v_proj": MODES["mxfp8"],
    f"{LAYER}.mlp.down_proj": False,
    "model.embed_tokens": {"bits": 6, "group_size": 64},
    "lm_head": False,
}
IDS = mx.array(np.random.default_rng(0).integers(0, 352, (2, 40)))
every_mode = pytest.mark.parametrize("mode", MODES)
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)


def dequantize(mode: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Any:
    """Return an edit that replaces every matrix by what its quantized form stands for."""

    def edit(tensors: Tensors) -> None:
        for name, value in tensors.items():
            spec = (overrides or {}).get(name.removesuffix(".weight"), mode)
            if value.ndim == 2 and not isinstance(spec, bool):
                packed = mx.quantize(value, **spec)
                tensors[name] = mx.dequantize(*packed, **spec).astype(mx.float32)

    return edit


def logits(folder: Path, **options: Any) -> mx.array:
    return load_model(folder, **options)[0](IDS)


@every_dialect
@every_mode
def test_equals_its_dequantized_twin(dialect: str, mode: str, make_folder: FolderMaker) -> None:
    packed = make_folder(dialect, quantize=MODES[mode])
    plain = make_folder(dialect, edit_tensors=dequantize(MODES[mode]))
    assert relative_error(logits(packed), logits(plain)) <= 1e-5


@every_dialect
@every_mode
def test_fusing_changes_no_bit(dialect: str, mode: str, make_folder: FolderMaker) -> None:
    folder = make_folder(dialect, quantize=MODES[mode])
    fused, _ = load_model(folder)
    apart, _ = load_model(folder, fuse_qkv=False)
    assert all("qkv_proj" in layer.self_attn for layer in fused.layers)
    assert all("q_proj" in layer.self_attn for layer in apart.layers)
    assert mx.array_equal(fused(IDS), apart(IDS))


@every_dialect
def test_fusing_plain_weights_keeps_the_rows(dialect: str, make_folder: FolderMaker) -> None:
    folder = make_folder(dialect)
    fused, _ = load_model(folder)
    apart, _ = load_model(folder, fuse_qkv=False)
    for one, three in zip(fused.layers, apart.layers, strict=True):
        for kind in ("weight", "bias"):
            rows = [three.self_attn[f"{part}_proj"][kind] for part in "qkv"]
            assert mx.array_equal(one.self_attn.qkv_proj[kind], mx.concatenate(rows))
    assert relative_error(fused(IDS), apart(IDS)) <= 1e-5


@pytest.mark.parametrize("dialect", ["glm", "glm4"])
@pytest.mark.parametrize("bias", [True, False])
def test_per_path_overrides(dialect: str, bias: bool, make_folder: FolderMaker) -> None:
    """q, k and v of the second layer differ, so they stay apart; the first layer's are joined."""
    options = {"quantize": MODES["affine4"], "overrides": MIXED, "bias": bias}
    decoder, _ = load_model(make_folder(dialect, **options))
    first, second = (layer.self_attn for layer in decoder.layers)
    assert "qkv_proj" in first
    assert [second[f"{part}_proj"].bits for part in "qkv"] == [8, 4, 8]
    assert isinstance(decoder.lm_head, nn.Linear)
    plain = make_folder(dialect, bias=bias, edit_tensors=dequantize(MODES["affine4"], MIXED))
    assert relative_error(decoder(IDS), logits(plain)) <= 1e-5


def test_tied_embeddings(make_folder: FolderMaker) -> None:
    packed = make_folder("glm", tied=True, quantize=MODES["affine4"])
    plain = make_folder("glm", tied=True, edit_tensors=dequantize(MODES["affine4"]))
    assert relative_error(logits(packed), logits(plain)) <= 1e-5


@every_mode
def test_quantized_cache_steps_equal_full_forward(mode: str, make_folder: FolderMaker) -> None:
    decoder, _ = load_model(make_folder("glm4", quantize=MODES[mode]))
    cache = decoder.make_cache()
    steps = [decoder(IDS[:, i : i + 1], cache) for i in range(IDS.shape[1])]
    assert relative_error(mx.concatenate(steps, axis=1), decoder(IDS)) <= 1e-5


def test_unlike_modules_are_not_joined() -> None:
    plain, biased = nn.Linear(64, 8, bias=False), nn.Linear(64, 8, bias=True)
    four, eight = (nn.QuantizedLinear(64, 8, False, 64, bits) for bits in (4, 8))
    assert concatenate_rows(plain, biased) is None
    assert concatenate_rows(plain, four) is None
    assert concatenate_rows(four, eight) is None
    joined = concatenate_rows(four, four)
    assert isinstance(joined, nn.QuantizedLinear)
    assert joined.weight.shape[0] == 16
