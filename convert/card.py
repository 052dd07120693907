"""The README.md of a result: what a reader of the Hub asks of a converted model.

Takes what was done from the report, and licence and languages from the card of the source.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.report import ConversionReport
from glm_mlx.errors import GLMWarning, InputFileError
from glm_mlx.hub import CARD, is_hub_id, read_metadata, write_metadata
from glm_mlx.modelfile import find_file

PLACE = "OWNER/NAME"  # for the repository the folder is going to, known when it is uploaded

_MAX_CHARACTERS = 1 << 20
_KEPT = ("license", "license_name", "license_link", "language")
_LIBRARIES = ("mlx", "transformers")
_ADDRESS = "https://huggingface.co"

_USE = """\
## Use

```sh
glm-mlx generate --model {place} --prompt "Hello"
```
"""
_USE_MLX_LM = """
```sh
mlx_lm.generate --model {place} --prompt "Hello"
```
"""
# mlx-lm rotates the whole head of every `glm`; the 2024 models rotate half of it.
_USE_MLX_LM_CLASSES = """
With mlx-lm, which by itself rotates the heads of this family wrongly:

```python
import glm_mlx
from huggingface_hub import snapshot_download
from mlx_lm.utils import load_model, load_tokenizer

folder = snapshot_download("{place}")
model, _ = load_model(folder, get_model_classes=glm_mlx.mlx_lm_classes)
tokenizer = load_tokenizer(folder)
```
"""
_USE_TRANSFORMERS = """
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{place}")
```
"""
_ERRORS = """\
## Measured errors

Relative error |W − W'| / |W| of the matrices of each part, over rows taken at even distances.

```text
{table}```
"""


def model_card(report: ConversionReport, source: Path) -> str:
    """Return the card of a result.

    Commands in it name the repository `PLACE`. A card of the source that cannot be read is a
    warning, and names no licence.
    """
    metadata = _metadata(report, _metadata_of(source))
    parts = [
        f"# {_plain(title(report))}\n",
        _origin(report),
        "" if metadata["license"] else "The card of the source names no licence.\n",
        _use(report),
        "## Recipe\n\n" + _rows(("option", "value"), _options(report)),
        _ERRORS.format(table=report.table()),
        "## Files\n\n" + _rows(("file", "sha256"), report.files.items()),
    ]
    return write_metadata(metadata) + "\n" + "\n".join(filter(None, parts))


def title(report: ConversionReport) -> str:
    """`GLM-4-9B-0414-4bit`: the name of the source and what was made of it."""
    return f"{report.source.rpartition('/')[2]}-{_label(report)}"


def _label(report: ConversionReport) -> str:
    options = report.recipe
    if "mode" not in options:
        return str(options.get("dtype", report.layout))
    names = {field.name for field in fields(Recipe)}
    return Recipe(**{key: value for key, value in options.items() if key in names}).label


def _metadata_of(source: Path) -> dict[str, Any]:
    try:
        file = find_file(source, CARD, error=InputFileError)
        if file is None:
            return {}
        with file.open(encoding="utf-8", errors="replace") as stream:
            return read_metadata(stream.read(_MAX_CHARACTERS), file=file)
    except (InputFileError, OSError) as cause:
        warnings.warn(f"the card of the source is ignored: {cause}", GLMWarning, stacklevel=3)
        return {}


def _metadata(report: ConversionReport, source: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML block: what the Hub sorts and filters models by."""
    kept = {key: _sound(source.get(key)) for key in _KEPT}
    library = "mlx" if report.layout == "mlx" else "transformers"
    tags = [tag for tag in _sound(source.get("tags")) or () if tag not in _LIBRARIES]
    base = report.source if is_hub_id(report.source) else None
    relation = "quantized" if "mode" in report.recipe else None
    return kept | {
        "base_model": base,
        "base_model_relation": relation if base else None,
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": [*dict.fromkeys(tags), library],
    }


def _sound(value: object) -> str | list[str] | None:
    """A text, or the texts of a list; None for what the Hub would not take."""
    if isinstance(value, list):
        return [text for text in value if isinstance(text, str)] or None
    return value if isinstance(value, str) else None


def _origin(report: ConversionReport) -> str:
    versions = " and ".join(f"{name} {version}" for name, version in report.versions.items())
    source = _plain(report.source)
    if is_hub_id(report.source):
        source = f"[{source}]({_ADDRESS}/{source})"
    if report.revision is not None:
        source += f" at commit `{_code(report.revision)}`"
    return (
        f"Made from {source} by {_plain(versions)}: {report.parameters:,} parameters in "
        f"{report.weight_bytes:,} bytes, {report.bits_per_weight:.3f} bits a weight.\n"
    )


def _use(report: ConversionReport) -> str:
    text = _USE
    sandwich = any("post_self_attn_layernorm" in tensor.name for tensor in report.tensors)
    if report.layout == "mlx":
        text += _USE_MLX_LM if sandwich else _USE_MLX_LM_CLASSES
    elif report.layout == "hf":
        text += _USE_TRANSFORMERS
    return text.format(place=PLACE)


def _options(report: ConversionReport) -> Iterable[tuple[str, str]]:
    return ((key, str(value)) for key, value in report.recipe.items())


def _rows(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {_plain(name)} | `{_code(value)}` |" for name, value in rows]
    return "\n".join([f"| {heads[0]} | {heads[1]} |", "|---|---|", *lines]) + "\n"


def _plain(text: str) -> str:
    """Text that is no markdown, whatever a folder is called."""
    return re.sub(r"[^\w .,:/+-]", "_", text)


def _code(text: str) -> str:
    """Text that stays in its backquotes and in its cell of a table."""
    return re.sub(r"[`|\x00-\x1f]", "_", text)
