"""What a conversion writes: the same model, the same bits as a whole-matrix quantization, proof."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from makers.folders import DIALECTS, Tensors, quantize_tensors, write_folder

from glm_mlx.checkpoint import Checkpoint
from glm_mlx.convert import pack
from glm_mlx.convert.pipeline import convert_folder
from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.report import ConversionReport
from glm_mlx.convert.settings import Progress, Settings
from glm_mlx.errors import CheckpointError, NumericError, OptionError
from glm_mlx.load import load_model

IDS = mx.array([[3, 200, 17, 41, 8, 90, 121]])


def settings(**options: Any) -> Settings:
    return Settings(source_name="tiny", **options)


def tensors_of(folder: Path) -> Tensors:
    return Checkpoint.open(folder).read()


def logits_of(folder: Path) -> mx.array:
    decoder, _ = load_model(folder)
    return decoder(IDS)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_an_unquantized_conversion_is_the_same_model(
    tmp_path: Path, dialect: str, shards: int
) -> None:
    source = write_folder(tmp_path / "source", dialect, shards=shards)
    convert_folder(source, tmp_path / "result", settings())
    assert mx.array_equal(logits_of(source), logits_of(tmp_path / "result")).item()


@pytest.mark.parametrize(
    "spec",
    [
        {"bits": 4, "group_size": 64},
        {"bits": 8, "group_size": 32},
        {"bits": 3, "group_size": 64},
        {"bits": 4, "group_size": 32, "mode": "mxfp4"},
        {"bits": 4, "group_size": 16, "mode": "nvfp4"},
        {"bits": 8, "group_size": 32, "mode": "mxfp8"},
    ],
    ids=lambda spec: f"{spec.get('mode', 'affine')}-{spec['bits']}",
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["fp32", "bf16"])
def test_blocks_quantize_to_the_bits_of_the_whole_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], dtype: mx.Dtype
) -> None:
    monkeypatch.setattr(pack, "BLOCK_BYTES", 1000)
    source = write_folder(tmp_path / "source", "glm4", dtype=dtype)
    convert_folder(source, tmp_path / "result", settings(recipe=Recipe(**spec)))
    expected = quantize_tensors(tensors_of(source), spec, {})
    found = tensors_of(tmp_path / "result")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert mx.array_equal(found[name].view(mx.uint8), array.view(mx.uint8)).item(), name


def test_shards_hold_whole_matrices_and_the_index_names_them(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", "chatglm")
    report = convert_folder(
        source, tmp_path / "result", settings(recipe=Recipe(bits=4), max_shard_bytes=20_000)
    )
    index = json.loads((tmp_path / "result" / "model.safetensors.index.json").read_text())
    places = index["weight_map"]
    assert len(report.files) > 3
    assert set(places.values()) == report.files.keys()
    for name, place in places.items():
        if name.endswith(".scales"):
            assert places[name.removesuffix("scales") + "weight"] == place
    assert index["metadata"]["total_size"] == report.weight_bytes


def test_the_report_adds_up_and_is_read_back(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", "chatglm", shards=3)
    report = convert_folder(source, tmp_path / "result", settings(recipe=Recipe(bits=4)))
    assert ConversionReport.read(tmp_path / "result") == report
    tensors = tensors_of(tmp_path / "result")
    assert report.weight_bytes == sum(array.nbytes for array in tensors.values())
    assert report.skipped == ("transformer.rotary_pos_emb.inv_freq",)
    used = {name: a for name, a in tensors_of(source).items() if name not in report.skipped}
    assert report.parameters == sum(array.size for array in used.values())
    by_name = {tensor.name: tensor for tensor in report.tensors}
    head = by_name["lm_head.weight"]
    whole = tensors_of(source)["transformer.output_layer.weight"]
    decoded = mx.dequantize(*mx.quantize(whole, 64, 4), 64, 4)
    error = mx.linalg.norm(whole - decoded) / mx.linalg.norm(whole)
    assert head.relative_error == pytest.approx(error.item(), rel=0.1)
    assert by_name["model.norm.weight"].relative_error == 0
    assert list(report.layers) == ["embed_tokens", "layer 0", "layer 1", "lm_head"]
    assert "layer 1" in report.table()


def test_progress_ends_where_the_source_ends(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", "glm")
    seen: list[Progress] = []
    convert_folder(source, tmp_path / "result", settings(), on_progress=seen.append)
    done = [progress.done_bytes for progress in seen if progress.stage == "converting"]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes


def test_dequantize_gives_the_floats_the_codes_stand_for(tmp_path: Path) -> None:
    quantize = {"bits": 4, "group_size": 64}
    source = write_folder(tmp_path / "source", "glm4", quantize=quantize)
    convert_folder(source, tmp_path / "result", settings(dequantize=True))
    packed, floats = tensors_of(source), tensors_of(tmp_path / "result")
    for name, array in floats.items():
        path = name.removesuffix(".weight")
        if f"{path}.scales" not in packed:
            assert mx.array_equal(array, packed[name]).item()
            continue
        parts = [packed[f"{path}.{part}"] for part in ("weight", "scales", "biases")]
        assert mx.array_equal(array, mx.dequantize(*parts, 64, 4)).item(), name
    assert mx.allclose(logits_of(source), logits_of(tmp_path / "result"), atol=1e-4).item()


@pytest.mark.parametrize("layout", ["hf", "chatglm"])
def test_the_way_back_is_exact(tmp_path: Path, layout: str) -> None:
    """chatglm -> mlx -> layout -> mlx: no value of any tensor changes."""
    source = write_folder(tmp_path / "source", "chatglm", dtype=mx.bfloat16)
    convert_folder(source, tmp_path / "there", settings())
    convert_folder(tmp_path / "there", tmp_path / "back", settings(layout=layout))
    convert_folder(tmp_path / "back", tmp_path / "again", settings())
    there, again = tensors_of(tmp_path / "there"), tensors_of(tmp_path / "again")
    assert there.keys() == again.keys()
    assert all(mx.array_equal(there[name], again[name]).item() for name in there)
    if layout == "chatglm":
        first, last = tensors_of(source), tensors_of(tmp_path / "back")
        assert first.keys() - last.keys() == {"transformer.rotary_pos_emb.inv_freq"}
        assert all(mx.array_equal(first[name], last[name]).item() for name in last)


def test_nothing_is_written_of_a_source_that_is_not_finite(tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        for name in ("lm_head.weight", "model.layers.1.mlp.down_proj.weight"):
            tensors[name][3, 5] = float("nan")

    source = write_folder(tmp_path / "source", "glm4", edit_tensors=spoil)
    with pytest.raises(NumericError) as caught:
        convert_folder(source, tmp_path / "result", settings(recipe=Recipe(bits=4)))
    assert "lm_head.weight (1)" in str(caught.value)
    assert "model.layers.1.mlp.down_proj.weight (1)" in str(caught.value)
    assert not (tmp_path / "result").exists()


def test_values_beyond_float16_are_named_or_cut_when_allowed(tmp_path: Path) -> None:
    def stretch(tensors: Tensors) -> None:
        tensors["model.norm.weight"][:2] = mx.array([1e6, -1e6])

    source = write_folder(tmp_path / "source", "glm4", edit_tensors=stretch)
    with pytest.raises(NumericError, match=r"model\.norm\.weight \(2\).*--allow-overflow"):
        convert_folder(source, tmp_path / "result", settings(dtype="float16"))
    allowed = settings(dtype="float16", allow_overflow=True)  # of other settings, nothing is lost
    report = convert_folder(source, tmp_path / "result", allowed)
    assert {t.name: t.beyond for t in report.tensors if t.beyond} == {"model.norm.weight": 2}
    norm = tensors_of(tmp_path / "result")["model.norm.weight"]
    assert norm[:2].tolist() == [65504, -65504]


@pytest.mark.parametrize(
    ("quantize", "options", "message"),
    [
        ({"bits": 4, "group_size": 64}, {"recipe": Recipe(bits=8)}, "is quantized already"),
        ({"bits": 4, "group_size": 64}, {}, "is quantized already"),
        (None, {"dequantize": True}, "is not quantized"),
    ],
)
def test_settings_that_do_not_fit_the_source(
    tmp_path: Path, quantize: Any, options: dict[str, Any], message: str
) -> None:
    source = write_folder(tmp_path / "source", "glm4", quantize=quantize)
    with pytest.raises(OptionError, match=message):
        convert_folder(source, tmp_path / "result", settings(**options))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    "recipe", [Recipe(bits=4), Recipe(mixed="mixed_3_6"), Recipe(mode="mxfp4")]
)
def test_mlx_lm_loads_a_glm4_result(tmp_path: Path, recipe: Recipe) -> None:
    from mlx_lm.utils import load_model as load_in_mlx_lm

    source = write_folder(tmp_path / "source", "glm4", bias=False)
    convert_folder(source, tmp_path / "result", settings(recipe=recipe))
    model, _ = load_in_mlx_lm(tmp_path / "result")
    assert mx.allclose(model(IDS), logits_of(tmp_path / "result"), atol=1e-4).item()


def test_a_source_with_checksums_is_held_against_them(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", "glm4")
    convert_folder(source, tmp_path / "packed", settings(recipe=Recipe(bits=4)))
    info = Checkpoint.open(tmp_path / "packed").tensors["lm_head.weight"]
    data = bytearray(info.file.read_bytes())
    data[info.start] ^= 1
    info.file.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        convert_folder(tmp_path / "packed", tmp_path / "result", settings(dequantize=True))
    assert not (tmp_path / "result").exists()
