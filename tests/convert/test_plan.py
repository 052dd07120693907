"""A plan uses every row of the source once and makes every tensor of the result once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from makers.folders import write_folder

from glm_mlx.checkpoint import Checkpoint
from glm_mlx.config import Quantization, QuantSpec, read_config
from glm_mlx.convert.plan import Piece, count_parameters, matrices, plan_pieces, quantized

FOUR_BITS = QuantSpec(4, 64, "affine")


def plan(folder: Path, **options: Any) -> tuple[Checkpoint, list[Piece], list[str]]:
    checkpoint = Checkpoint.open(folder)
    defaults: dict[str, Any] = {"layout": "mlx", "dtype": None}
    pieces, skipped = plan_pieces(checkpoint, read_config(folder), **defaults | options)
    return checkpoint, pieces, skipped


@pytest.mark.parametrize(
    ("dialect", "layout"),
    [("glm4", "mlx"), ("glm", "hf"), ("glm", "chatglm"), ("chatglm", "hf"), ("chatglm", "chatglm")],
)
@pytest.mark.parametrize("quantize", [None, {"bits": 4, "group_size": 32}], ids=["", "packed"])
def test_every_row_is_used_once(tmp_path: Path, dialect: str, layout: str, quantize: Any) -> None:
    source = write_folder(tmp_path, dialect, shards=2, quantize=quantize)
    checkpoint, pieces, skipped = plan(source, layout=layout)
    used: Counter[tuple[str, int]] = Counter()
    for piece in pieces:
        assert piece.shape[0] == sum(s.stop - s.start for s in piece.segments)
        for segment in piece.segments:
            for info in segment.tensors:
                used.update((info.name, row) for row in range(segment.start, segment.stop))
    expected = {
        (name, row)
        for name, info in checkpoint.tensors.items()
        if name not in skipped
        for row in range(info.shape[0])
    }
    assert used.keys() == expected
    assert set(used.values()) == {1}
    assert len({piece.name for piece in pieces}) == len(pieces)


def test_the_joined_matrix_has_queries_first_then_keys_then_values(tmp_path: Path) -> None:
    """Whatever the order in which a folder stores them."""

    def reverse(tensors: dict[str, mx.array]) -> None:
        for name in sorted(tensors, reverse=True):
            tensors[name] = tensors.pop(name)

    _, pieces, _ = plan(write_folder(tmp_path, "glm", edit_tensors=reverse), layout="chatglm")
    name = "transformer.encoder.layers.1.self_attention.query_key_value.bias"
    (joined,) = [piece for piece in pieces if piece.name == name]
    sources = [segment.weight.name.rpartition("self_attn.")[2] for segment in joined.segments]
    assert sources == ["q_proj.bias", "k_proj.bias", "v_proj.bias"]


def test_a_head_beside_a_tied_embedding_is_left_out(tmp_path: Path) -> None:
    def add_head(tensors: dict[str, mx.array]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    _, pieces, skipped = plan(write_folder(tmp_path, "glm", tied=True, edit_tensors=add_head))
    assert skipped == ["lm_head.weight"]
    assert "lm_head.weight" not in {piece.name for piece in pieces}


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_a_packed_source_has_the_shape_and_dtype_of_its_floats(tmp_path: Path, mode: str) -> None:
    quantize = {"bits": 4, "group_size": 32, "mode": mode}
    source = write_folder(tmp_path, "glm4", dtype=mx.bfloat16, quantize=quantize)
    _, pieces, _ = plan(source)
    shapes = {piece.name: (piece.shape, piece.dtype) for piece in pieces}
    assert shapes["lm_head.weight"] == ((352, 64), "BF16")
    assert shapes["model.norm.weight"] == ((64,), "BF16")


def test_outputs_are_what_mlx_packs_into(tmp_path: Path) -> None:
    _, pieces, _ = plan(write_folder(tmp_path, "glm4"))
    overrides = {"lm_head": None, "model.embed_tokens": QuantSpec(8, 32, "mxfp8")}
    packed = quantized(pieces, Quantization(FOUR_BITS, overrides))
    specs = {output.name: output for piece in packed for output in piece.outputs}
    for piece in packed:
        arrays: tuple[mx.array, ...] = (mx.zeros(piece.shape),)
        if spec := piece.spec:
            arrays = tuple(mx.quantize(arrays[0], spec.group_size, spec.bits, spec.mode))
        for output, array in zip(piece.outputs, arrays, strict=True):
            assert (output.shape, output.size_bytes) == (array.shape, array.nbytes), output.name
    assert specs["lm_head.weight"].dtype == "F32"
    assert specs["model.embed_tokens.scales"].dtype == "U8"
    assert "model.embed_tokens.biases" not in specs
    assert not any(name.startswith("model.norm.") and "scales" in name for name in specs)


def test_matrices_and_parameters(tmp_path: Path) -> None:
    _, pieces, _ = plan(write_folder(tmp_path, "chatglm"))
    found = matrices(pieces)
    assert found["model.layers.0.self_attn.k_proj"] == (32, 64)
    assert found["model.embed_tokens"] == (352, 64)
    assert len(found) == 2 + 2 * 6
    assert count_parameters(pieces) > sum(rows * columns for rows, columns in found.values())
