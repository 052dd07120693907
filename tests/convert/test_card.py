"""The card: metadata that the Hub takes, the facts of the report, nothing a stranger may inject."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from glm_mlx.convert.card import PLACE, model_card, title
from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.report import ConversionReport, TensorReport
from glm_mlx.errors import GLMWarning

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PACKED = TensorReport("model.layers.0.mlp.down_proj.weight", (64, 128), "affine 4/64", 4608, 0.0712)
REPORT = ConversionReport(
    source="zai-org/glm-4-9b-chat",
    revision=COMMIT,
    layout="mlx",
    recipe={"mode": "affine", "bits": 4, "layout": "mlx"},
    versions={"glm-mlx": "0.1.0", "mlx": "0.32.4"},
    tensors=(
        PACKED,
        TensorReport("model.layers.0.input_layernorm.weight", (64,), "bf16", 128, 0.0),
    ),
    skipped=(),
    files={"model.safetensors": "ab" * 32},
)
SANDWICH = TensorReport("model.layers.0.post_self_attn_layernorm.weight", (64,), "bf16", 128, 0.0)
SOURCE_CARD = """---
language:
- zh
- en
license: other
license_name: glm-4
license_link: https://huggingface.co/zai-org/glm-4-9b-chat/blob/main/LICENSE
tags:
- glm
- mlx
inference: false
---
# GLM-4
"""


def card_of(folder: Path, report: ConversionReport = REPORT, source: str | None = None) -> Any:
    if source is not None:
        (folder / "README.md").write_text(source, encoding="utf-8")
    return ModelCard(model_card(report, folder))


def test_metadata_comes_from_the_source_and_the_report(tmp_path: Path) -> None:
    card = card_of(tmp_path, source=SOURCE_CARD)
    assert card.data.to_dict() == {
        "base_model": "zai-org/glm-4-9b-chat",
        "base_model_relation": "quantized",
        "language": ["zh", "en"],
        "library_name": "mlx",
        "license": "other",
        "license_name": "glm-4",
        "license_link": "https://huggingface.co/zai-org/glm-4-9b-chat/blob/main/LICENSE",
        "pipeline_tag": "text-generation",
        "tags": ["glm", "mlx"],
    }
    assert "names no licence" not in card.text


def test_the_facts_of_the_report_are_in_the_text(tmp_path: Path) -> None:
    text = card_of(tmp_path).text
    assert text.startswith("\n# glm-4-9b-chat-4bit\n")
    for fact in (
        f"[zai-org/glm-4-9b-chat](https://huggingface.co/zai-org/glm-4-9b-chat) at commit "
        f"`{COMMIT}` by glm-mlx 0.1.0 and mlx 0.32.4",
        "8,256 parameters in 4,736 bytes, 4.589 bits a weight",
        "| bits | `4` |",
        REPORT.table(),
        f"| model.safetensors | `{'ab' * 32}` |",
        f"glm-mlx generate --model {PLACE}",
        "The card of the source names no licence.",
    ):
        assert fact in text


@pytest.mark.parametrize(
    ("report", "said", "library"),
    [
        (REPORT, f'snapshot_download("{PLACE}")', "mlx"),
        (replace(REPORT, tensors=(PACKED, SANDWICH)), f"mlx_lm.generate --model {PLACE}", "mlx"),
        (replace(REPORT, layout="hf"), f'from_pretrained("{PLACE}")', "transformers"),
    ],
    ids=["glm", "glm4", "hf"],
)
def test_other_programs_are_told_what_works(
    tmp_path: Path, report: ConversionReport, said: str, library: str
) -> None:
    card = card_of(tmp_path, report)
    others = {f'snapshot_download("{PLACE}")', f"mlx_lm.generate --model {PLACE}"} - {said}
    assert said in card.text
    assert not any(other in card.text for other in others)
    assert card.data.library_name == library


@pytest.mark.parametrize(
    ("recipe", "layout", "expected"),
    [
        (asdict(Recipe.parse("mixed_4_6")), "mlx", "mixed_4_6"),
        (asdict(Recipe.parse("4.6bit")) | {"learn": "awq"}, "mlx", "4.6bit"),
        ({"dtype": "float16", "layout": "mlx"}, "mlx", "float16"),
        ({"layout": "chatglm"}, "chatglm", "chatglm"),
    ],
)
def test_the_title_says_what_was_made(recipe: dict[str, Any], layout: str, expected: str) -> None:
    report = replace(REPORT, recipe=recipe, layout=layout)
    assert title(report) == f"glm-4-9b-chat-{expected}"


def test_unquantized_is_no_quantization_of_the_base(tmp_path: Path) -> None:
    data = card_of(tmp_path, replace(REPORT, recipe={"layout": "mlx"})).data
    assert data.base_model == REPORT.source
    assert data.get("base_model_relation") is None


def test_a_folder_is_no_base_model_and_its_name_no_markdown(tmp_path: Path) -> None:
    report = replace(REPORT, source="a](x) `b`|\n<script>", revision=None)
    card = card_of(tmp_path, report)
    assert card.data.get("base_model") is None
    assert "\n# a__x_ _b____script_-4bit\n" in card.text
    assert "<script>" not in card.text


def test_a_card_that_says_odd_things_gives_what_is_sound(tmp_path: Path) -> None:
    source = "---\nlicense: 5\nlanguage: [{a: b}, en]\ntags: [7, glm]\n---\n"
    card = card_of(tmp_path, source=source)
    assert card.data.get("license") is None
    assert card.data.language == ["en"]
    assert card.data.tags == ["glm", "mlx"]
    assert "names no licence" in card.text


def test_a_card_that_cannot_be_read_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "README.md").symlink_to("/nowhere/README.md")
    with pytest.warns(GLMWarning, match="card of the source is ignored: .*README.md: is a link"):
        card_of(tmp_path)


def test_the_same_conversion_gives_the_same_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(SOURCE_CARD, encoding="utf-8")
    assert model_card(REPORT, tmp_path) == model_card(REPORT, tmp_path)
