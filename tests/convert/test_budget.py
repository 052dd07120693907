"""A target is met from below and closely, by the same widths each time, and told when it cannot."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.folders import DIALECTS, write_folder
from mlx_lm.models import glm4
from mlx_lm.utils import compute_bits_per_weight, quantize_model

from glm_mlx.checkpoint import Checkpoint, RowReader
from glm_mlx.config import Quantization, QuantSpec, read_config
from glm_mlx.convert.budget import Choice, allocate, spend
from glm_mlx.convert.pipeline import convert_folder
from glm_mlx.convert.plan import count_parameters, plan_pieces, quantized
from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.settings import OnProgress, Progress, Settings
from glm_mlx.errors import NumericError, OptionError
from glm_mlx.load import load_model

WIDTHS = (2, 3, 4, 5, 6, 8)
LAYERS = 6


def choose(folder: Path, recipe: Recipe, on_progress: OnProgress | None = None) -> Quantization:
    config = read_config(folder)
    checkpoint = Checkpoint.open(folder)
    pieces, _ = plan_pieces(checkpoint, config, layout="mlx", dtype=None)
    with RowReader(checkpoint) as reader:
        return allocate(recipe, pieces, reader, config, on_progress)


def size_of(folder: Path, quantization: Quantization) -> tuple[int, int]:
    """Return the bytes of all tensors and the number of parameters."""
    pieces, _ = plan_pieces(Checkpoint.open(folder), read_config(folder), layout="mlx", dtype=None)
    outputs = [output for piece in quantized(pieces, quantization) for output in piece.outputs]
    return sum(output.size_bytes for output in outputs), count_parameters(pieces)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget") / "source"
    return write_folder(folder, "glm4", num_layers=LAYERS, dtype=mx.bfloat16)


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("target", [3.2, 3.5, 4.0, 4.6, 5.5, 7.3, 8.5])
def test_target_is_met_from_below_and_closely(source: Path, target: float, group_size: int) -> None:
    quantization = choose(source, Recipe(target_bits=target, group_size=group_size))
    size_bytes, parameters = size_of(source, quantization)
    assert 0.98 * target < 8 * size_bytes / parameters <= target
    assert choose(source, Recipe(target_bytes=size_bytes, group_size=group_size)) == quantization


def test_bits_are_counted_as_mlx_lm_counts_them(source: Path) -> None:
    quantization = choose(source, Recipe(target_bits=4.6))
    size_bytes, parameters = size_of(source, quantization)
    model = glm4.Model(glm4.ModelArgs.from_dict(json.loads((source / "config.json").read_text())))
    model.set_dtype(mx.bfloat16)

    def predicate(path: str, module: Any) -> Any:
        return quantization.spec_for(path).to_json()  # type: ignore[union-attr]

    model, _ = quantize_model(model, {}, 64, 4, quant_predicate=predicate)
    assert compute_bits_per_weight(model) == pytest.approx(8 * size_bytes / parameters)


def test_q_k_and_v_of_a_layer_can_be_fused(source: Path) -> None:
    quantization = choose(source, Recipe(target_bits=4.6))
    layers = [f"model.layers.{layer}.self_attn" for layer in range(LAYERS)]
    widths = [{quantization.spec_for(f"{path}.{name}_proj") for name in "qkv"} for path in layers]
    assert all(len(of_layer) == 1 for of_layer in widths)


def test_both_layouts_of_one_model_get_the_same_widths(tmp_path: Path) -> None:
    chatglm, glm = (write_folder(tmp_path / dialect, dialect) for dialect in ("chatglm", "glm"))
    recipe = Recipe(target_bits=4.6)
    assert choose(chatglm, recipe) == choose(glm, recipe)


def test_a_packed_source_is_measured_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "packed", quantize={"bits": 8, "group_size": 64})
    quantization = choose(folder, Recipe(target_bits=5))
    size_bytes, parameters = size_of(folder, quantization)
    assert 8 * size_bytes / parameters <= 5


def test_what_the_recipe_pins_stays(source: Path) -> None:
    recipe = Recipe(
        target_bits=5.4,
        embed_bits="none",
        head_bits=8,
        overrides={"*.0.mlp.*": {"bits": 3}, "*.1.mlp.down_proj": False},
    )
    quantization = choose(source, recipe)
    assert quantization.spec_for("model.embed_tokens") is None
    assert quantization.spec_for("lm_head") == QuantSpec(8, 64, "affine")
    assert quantization.spec_for("model.layers.0.mlp.down_proj") == QuantSpec(3, 64, "affine")
    assert quantization.spec_for("model.layers.1.mlp.down_proj") is None
    size_bytes, parameters = size_of(source, quantization)
    assert 0.98 * 5.4 < 8 * size_bytes / parameters <= 5.4


def test_more_than_everything_at_8_bits_is_8_bits(source: Path) -> None:
    assert choose(source, Recipe(target_bits=12)) == Quantization(QuantSpec(8, 64, "affine"))


@pytest.mark.parametrize("options", [{}, {"embed_bits": "none"}, {"head_bits": 8}])
def test_out_of_reach(source: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        choose(source, Recipe(target_bits=2.0, **options))
    said = str(caught.value)
    assert "target_bits 2 is too small for this model" in said and "bits a weight; ask" in said
    smallest = float(said.split(" make ")[1].split(" to ")[0])
    quantization = choose(source, Recipe(target_bits=smallest, **options))
    size_bytes, parameters = size_of(source, quantization)
    assert smallest - 0.001 <= 8 * size_bytes / parameters <= smallest
    with pytest.raises(OptionError, match=f"make {size_bytes:,} to .* bytes; ask for one"):
        choose(source, Recipe(target_bytes=size_bytes - 1, **options))


def test_nothing_is_read_for_a_target_that_cannot_be(source: Path) -> None:
    def never(progress: Progress) -> None:
        raise AssertionError(progress)

    with pytest.raises(OptionError, match="too small"):
        choose(source, Recipe(target_bytes=1), never)


def test_width_that_no_group_divides_is_refused_unless_pinned(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "odd", intermediate_size=96)
    with pytest.raises(OptionError, match=r"group size 64 does not divide .* \(96\)"):
        choose(folder, Recipe(target_bits=5))
    overrides = {"*.down_proj": False}
    quantization = choose(folder, Recipe(target_bits=12, overrides=overrides))
    assert quantization.spec_for("model.layers.0.mlp.down_proj") is None


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_conversion_to_a_target_keeps_it_and_loads(tmp_path: Path, dialect: str) -> None:
    source = write_folder(tmp_path / "source", dialect, dtype=mx.bfloat16)
    result = tmp_path / "result"
    recipe = Recipe(target_bytes=88_000, group_size=32)
    convert_folder(source, result, Settings(source_name="tiny", recipe=recipe))
    tensors = Checkpoint.open(result).tensors
    assert 0.98 * 88_000 < sum(info.size_bytes for info in tensors.values()) <= 88_000
    decoder, _ = load_model(result)
    assert all("qkv_proj" in layer.self_attn for layer in decoder.layers)


def test_progress(source: Path) -> None:
    seen: list[Progress] = []
    choose(source, Recipe(target_bits=5), seen.append)
    done = [progress.done_bytes for progress in seen]
    assert {progress.stage for progress in seen} == {"measuring"}
    assert done == sorted(done) and done[-1] == seen[-1].total_bytes
    assert seen[-1].total_bytes == sum(
        info.size_bytes for info in Checkpoint.open(source).tensors.values()
    )


def test_nan_is_named(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, mx.array]) -> None:
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = mx.where(mx.arange(128) == 77, mx.nan, tensors[name])

    folder = write_folder(tmp_path / "bad", edit_tensors=spoil)
    with pytest.raises(NumericError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        choose(folder, Recipe(target_bits=5))


def test_a_matrix_that_few_bits_hold_gets_few(tmp_path: Path) -> None:
    def simplify(tensors: dict[str, mx.array]) -> None:
        name = "model.layers.1.mlp.down_proj.weight"
        tensors[name] = mx.sign(tensors[name]) / 8

    folder = write_folder(tmp_path / "simple", num_layers=3, edit_tensors=simplify)
    quantization = choose(folder, Recipe(target_bits=5.2))
    bits = [
        spec.bits
        for layer in range(3)
        if (spec := quantization.spec_for(f"model.layers.{layer}.mlp.down_proj"))
    ]
    assert bits[1] < min(bits[0], bits[2])


@given(
    st.lists(
        st.tuples(
            st.integers(1, 9),
            st.lists(st.floats(0, 1), min_size=6, max_size=6).map(lambda e: sorted(e)[::-1]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 240),
)
def test_spending_is_as_good_as_any_choice_of_that_size_on_the_hull(
    matrices: list[tuple[int, list[float]]], spare_bytes: int
) -> None:
    """What is bought fits, nothing that still fits is left, and no cheaper choice errs less."""
    choices = [
        Choice(
            (str(index),),
            {bits: bits * size for bits in WIDTHS},
            dict(zip(WIDTHS, errors, strict=True)),
        )
        for index, (size, errors) in enumerate(matrices)
    ]
    bits = spend(choices, spare_bytes)

    def cost(of: tuple[int, ...]) -> int:
        return sum((b - 2) * size for b, (size, _) in zip(of, matrices, strict=True))

    def error(of: tuple[int, ...]) -> float:
        return sum(c.errors[b] for b, c in zip(of, choices, strict=True))

    chosen = tuple(bits)
    assert cost(chosen) <= spare_bytes
    every = list(itertools.product(WIDTHS, repeat=len(choices)))
    # The first step that did not fit bounds what the best choice of all could still save.
    largest_step = max(
        choice.errors[low] - choice.errors[high]
        for choice in choices
        for low, high in itertools.combinations(WIDTHS, 2)
    )
    best = min(error(other) for other in every if cost(other) <= spare_bytes)
    assert error(chosen) <= best + largest_step + 1e-9
