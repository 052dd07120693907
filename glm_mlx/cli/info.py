"""`glm-mlx info`: what a model folder holds, from its headers; with --check, from every byte."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glm_mlx.cli import terminal
from glm_mlx.cli.options import ModelChoice, debug_option, model_options
from glm_mlx.errors import NumericError, TokenizerError
from glm_mlx.jsonfile import read_json_object

if TYPE_CHECKING:
    from glm_mlx.api import ConversionReport
    from glm_mlx.checkpoint import Checkpoint
    from glm_mlx.config import ModelConfig
    from glm_mlx.text import Tokenizer

_KEY_AND_VALUE = 2
_DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


@click.command()
@click.argument("path_or_repo", required=False)
@model_options
@click.option("--check", is_flag=True, help="Read all weights: checksums, NaN, infinity.")
@click.option("--json", is_flag=True, help="Print a JSON object.")
@debug_option
def info(choice: ModelChoice, check: bool, json: bool) -> None:
    """Describe a model folder and check it.

    Headers, index, config and tokenizer are checked against each other; weights are read only
    with --check. Of a converted folder the report is shown too.
    """
    from glm_mlx.api import ConversionReport
    from glm_mlx.checkpoint import Checkpoint

    folder = choice.folder()
    checkpoint = Checkpoint.open(folder)
    facts = _facts(choice, folder, checkpoint)
    report = ConversionReport.read(folder)
    if report is not None:
        facts["conversion"] = report.to_dict()
    findings: list[str] = []
    if check:
        with closing(terminal.Progress("reading the weights", "bytes")) as progress:
            findings = checkpoint.check_data(on_progress=progress)
        facts["check"] = findings or "every value is finite"
    if json:
        terminal.emit_json(facts)
    else:
        for name, value in _lines(facts).items():
            terminal.emit(f"{name:<14}{terminal.printable(value)}\n")
        if report is not None:
            terminal.emit("\n" + "\n".join(map(terminal.printable, _conversion(report))) + "\n")
    if findings:
        more = f" and {len(findings) - 5} more" if len(findings) > 5 else ""
        raise NumericError("; ".join(findings[:5]) + more, file=folder)


def _facts(choice: ModelChoice, folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything known about a model without reading a weight, under the names JSON gets."""
    from mlx.utils import tree_reduce

    from glm_mlx.config import read_config, read_generation_config
    from glm_mlx.load import build
    from glm_mlx.model.decoder import Decoder
    from glm_mlx.text import Tokenizer

    config = read_config(folder, rope=choice.rope, trust_config=choice.trust_config)
    config = build(config, checkpoint).config
    tokenizer = Tokenizer.from_folder(folder, vocab_size=config.vocab_size, family=config.family)
    bytes_by_dtype: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        bytes_by_dtype[tensor.dtype] += tensor.size_bytes
    plain = Decoder(config).parameters()  # never computed, only counted
    kv_bytes = _kv_bytes_per_token(config, checkpoint)
    return {
        "folder": str(folder),
        "config": asdict(config) | {"quantization": _quantization(config)},
        "parameters": tree_reduce(lambda count, array: count + array.size, plain, 0),
        "files": len({tensor.file for tensor in checkpoint.tensors.values()}),
        "weight_bytes": dict(bytes_by_dtype),
        "kv_bytes_per_token": kv_bytes,
        "kv_bytes_full_context": kv_bytes * config.max_position_embeddings,
        "special_ids": dict(tokenizer.special_ids),
        "stop_ids": sorted(tokenizer.stop_ids | set(config.eos_token_ids)),
        "chat_template": _template(folder, config, tokenizer),
        "sampling": asdict(read_generation_config(folder)),
    }


def _template(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> str | None:
    """Where the chat template comes from."""
    from glm_mlx.text.template import find_sources

    file = folder / "tokenizer_config.json"
    settings = read_json_object(file, error=TokenizerError) if file.is_file() else {}
    sources = find_sources(
        folder, settings, family=config.family, specials=tokenizer.special_ids.keys()
    )
    return ", ".join(sorted({str(source.file) for source in sources.values()})) or None


def _quantization(config: ModelConfig) -> dict[str, Any] | None:
    if config.quantization is None:
        return None
    return asdict(config.quantization.default) | {"overrides": len(config.quantization.overrides)}


def _kv_bytes_per_token(config: ModelConfig, checkpoint: Checkpoint) -> int:
    """Keys and values of all layers, in the dtype of the norms, which is that of activations."""
    dtype = next(
        tensor.dtype
        for name, tensor in checkpoint.tensors.items()
        if name.endswith("input_layernorm.weight")
    )
    values = config.num_layers * config.num_kv_heads * config.head_dim
    return _KEY_AND_VALUE * values * _DTYPE_BYTES[dtype]


def _lines(facts: dict[str, Any]) -> dict[str, str]:
    """The same facts for a person: name -> one line."""
    config = facts["config"]
    weights = ", ".join(
        f"{dtype} {terminal.human_bytes(n)}" for dtype, n in facts["weight_bytes"].items()
    )
    lines = {
        "model": facts["folder"],
        "family": f"{config['family']}, {config['num_layers']} layers, "
        f"hidden {config['hidden_size']:,}, feed-forward {config['intermediate_size']:,}",
        "attention": f"{config['num_heads']} heads, {config['num_kv_heads']} for keys and values, "
        f"of {config['head_dim']}, {'with' if config['attention_bias'] else 'without'} bias",
        "rotary": f"{config['rotary_dim']} of {config['head_dim']}, theta "
        f"{config['rope_theta']:,.12g}"
        + (f", YaRN factor {config['yarn']['factor']:g}" if config["yarn"] else ""),
        "context": f"{config['max_position_embeddings']:,} tokens",
        "vocabulary": f"{config['vocab_size']:,}"
        + (", embedding and head tied" if config["tie_word_embeddings"] else ""),
        "parameters": f"{facts['parameters']:,}",
        "weights": f"{weights} in {facts['files']} {'file' if facts['files'] == 1 else 'files'}",
        "quantization": _quantization_line(config["quantization"]),
        "KV cache": f"{facts['kv_bytes_per_token']:,} bytes a token, "
        f"{terminal.human_bytes(facts['kv_bytes_full_context'])} for the full context",
        "specials": ", ".join(f"{text} {id}" for text, id in facts["special_ids"].items()),
        "stops on": ", ".join(map(str, facts["stop_ids"])),
        "template": facts["chat_template"] or "none: completes raw text only",
        "sampling": ", ".join(
            f"{name} {value}"
            for name, value in facts["sampling"].items()
            if value is not None and name != "eos_token_ids"
        ),
    }
    if "check" in facts:
        findings = facts["check"]
        lines["check"] = findings if isinstance(findings, str) else f"{len(findings)} tensors bad"
    return lines


def _conversion(report: ConversionReport) -> list[str]:
    """The report of a converted folder, for a person."""
    commit = "" if report.revision is None else f" at {report.revision}"
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    recipe = ", ".join(f"{key} {value}" for key, value in report.recipe.items())
    lines = {"converted from": f"{report.source}{commit}", "by": versions, "recipe": recipe}
    return [
        *(f"{name:<14}  {value}" for name, value in lines.items()),
        *report.table().splitlines(),
    ]


def _quantization_line(spec: dict[str, Any] | None) -> str:
    if spec is None:
        return "none"
    other = f", {spec['overrides']} modules differ" if spec["overrides"] else ""
    return f"{spec['mode']}, {spec['bits']} bits, groups of {spec['group_size']}{other}"
