"""Print, as JSON, what recipes of equal size cost: KL(reference || quantized) and how it was met.

    python tests/bench/recipe_quality.py [--models nano glm4 glm] [--tokens 960]

`nano` is the embedded model on held-out dialogues of its training script; `glm4` and `glm` are
random models, 1,024 wide, of uneven rows and columns with heavy tails, on random tokens. For every
fixed recipe a target of the same bytes is allocated by several guides: `relative` (each matrix
counts alike), `parameters` (each parameter counts alike), `expected` (what a conversion uses) and
`measured` (the KL that each matrix causes alone, which takes text and a forward pass a matrix).
Logits are transformers', in fp32: needs the `parity` extra and some minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_flatten
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "train_nano"))

from corpus import dialogue
from makers.folders import Shape, make_config, make_weights
from teach import Teacher

from glm_mlx.checkpoint import Checkpoint, RowReader
from glm_mlx.config import Quantization, read_config
from glm_mlx.convert import budget
from glm_mlx.convert.plan import count_parameters, matrices, plan_pieces, quantized
from glm_mlx.convert.recipes import Recipe
from glm_mlx.load import load_model

NANO = Path(__file__).parents[2] / "glm_mlx" / "nano"
WIDE = Shape(
    hidden_size=1024,
    num_layers=5,
    num_heads=8,
    num_kv_heads=2,
    head_dim=128,
    intermediate_size=2816,
    vocab_size=2048,
)
RECIPES = ("3bit", "4bit", "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
LONGEST_TOKENS = 80

Weights = dict[str, mx.array]
Guide = Callable[[Mapping[str, float], Any], dict[str, float]]


def write_model(folder: Path, weights: Weights, config: Mapping[str, object]) -> None:
    tensors = {name: value.astype(mx.bfloat16) for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def write_nano(folder: Path) -> None:
    """Unpack the embedded model, its values spread over the steps of its 8 bits."""
    packed, _ = load_model(NANO, fuse_qkv=False)
    weights: Weights = dict(tree_flatten(packed.parameters()))
    mx.random.seed(0)
    for path, module in packed.named_modules():
        if hasattr(module, "bits"):
            parts = [weights.pop(f"{path}.{part}") for part in ("weight", "scales", "biases")]
            floats = mx.dequantize(*parts, module.group_size, module.bits)
            step = mx.repeat(mx.abs(parts[1]), module.group_size, axis=1)
            weights[f"{path}.weight"] = floats + step * (mx.random.uniform(shape=step.shape) - 0.5)
    config = json.loads((NANO / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    write_model(folder, weights, config)


def write_random(folder: Path, family: str) -> None:
    """Uneven matrices, and branches that add less than the stream carries."""
    random = np.random.default_rng(0)
    weights: Weights = {}
    for name, value in make_weights(WIDE, sandwich=family == "glm4").items():
        module = name.split(".")[-2]
        if value.ndim == 2:
            rows, columns = value.shape
            spread = random.uniform(0.05, 0.4)
            value = random.standard_t(random.uniform(3.5, 12), value.shape)
            value *= np.exp(spread * random.standard_normal((rows, 1)))
            value *= np.exp(spread * random.standard_normal((1, columns)))
            value[:, random.choice(columns, columns // 200, False)] *= random.uniform(2, 6)
            value /= np.sqrt(np.square(value).mean() * columns)
            scale = {"embed_tokens": 24.0, "lm_head": 0.7, "o_proj": 0.3, "down_proj": 0.3}
            if module in ("embed_tokens", "lm_head") or family == "glm":
                value *= scale.get(module, 1.0)
        elif "norm" in module:
            on_the_way_out = module in ("post_self_attn_layernorm", "post_mlp_layernorm")
            value = np.exp(0.5 * random.standard_normal(value.shape)) / (4 if on_the_way_out else 1)
        weights[name] = mx.array(value.astype(np.float32))
    write_model(folder, weights, make_config(family, WIDE) | {"eos_token_id": 0, "pad_token_id": 0})


def nano_dialogues() -> Iterator[list[int]]:
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    teacher = Teacher((NANO / "chat_template.jinja").read_text(encoding="utf-8"))
    random = Random(1)
    while True:
        drawn = dialogue(random, test=True)
        text = teacher.prompt(drawn) + teacher.completion(drawn)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) <= LONGEST_TOKENS:
            yield ids


def random_texts() -> Iterator[list[int]]:
    random = np.random.default_rng(1)
    while True:
        yield random.integers(0, WIDE.vocab_size, LONGEST_TOKENS).tolist()


class Judge:
    """Compares widths by the logits they lead to."""

    def __init__(self, folder: Path, texts: Iterator[list[int]], tokens: int) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.config = read_config(folder)
        self.pieces, _ = plan_pieces(self.checkpoint, self.config, layout="mlx", dtype=None)
        self.shapes = matrices(self.pieces)
        self.weights = self.checkpoint.read()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.parameters = dict(self.model.named_parameters())
        self.texts: list[list[int]] = []
        while sum(map(len, self.texts)) < tokens:
            self.texts.append(next(texts))
        self.quantize = cache(self._quantize)
        self.reference = self.log_probabilities({})

    def log_probabilities(self, bits: Mapping[str, int]) -> torch.Tensor:
        for path in self.shapes:
            self.parameters[f"{path}.weight"].data = self.quantize(path, bits.get(path))
        with torch.no_grad():
            logits = [self.model(torch.tensor([ids])).logits[0] for ids in self.texts]
        return torch.log_softmax(torch.cat(logits), -1)

    def _quantize(self, path: str, bits: int | None) -> torch.Tensor:
        weight = self.weights[f"{path}.weight"]
        if bits is not None:
            codes, *scales = mx.quantize(weight, 64, bits)
            weight = mx.dequantize(codes, *(s.astype(mx.float32) for s in scales), 64, bits)
        return torch.from_numpy(np.array(weight.astype(mx.float32)))

    def divergence(self, bits: Mapping[str, int]) -> float:
        after = self.log_probabilities(bits)
        divergence = (self.reference.exp() * (self.reference - after)).sum(-1)
        return float(divergence.mean())

    def widths(self, quantization: Quantization) -> dict[str, int]:
        specs = {path: quantization.spec_for(path) for path in self.shapes}
        return {path: spec.bits for path, spec in specs.items() if spec is not None}

    def size_bytes(self, quantization: Quantization) -> int:
        pieces = quantized(self.pieces, quantization)
        return sum(output.size_bytes for piece in pieces for output in piece.outputs)

    def allocate(self, target_bytes: int, guide: Guide) -> Quantization:
        with patch.object(budget, "sensitivities", guide), RowReader(self.checkpoint) as reader:
            recipe = Recipe(target_bytes=target_bytes)
            return budget.allocate(recipe, self.pieces, reader, self.config)

    def guides(self) -> dict[str, Guide]:
        """Each matrix's weight in the sum of relative errors, by several rules."""
        measured = {}
        for path in self.shapes:
            exact, rounded = self.quantize(path, None), self.quantize(path, 4)
            error = float((exact - rounded).square().sum() / exact.square().sum())
            measured[path] = self.divergence({path: 4}) / error
        counts = {path: float(rows * columns) for path, (rows, columns) in self.shapes.items()}
        return {
            "relative": lambda powers, config: dict.fromkeys(self.shapes, 1.0),
            "parameters": lambda powers, config: counts,
            "expected": budget.sensitivities,
            "measured": lambda powers, config: measured,
        }

    def report(self) -> list[dict[str, Any]]:
        parameters = count_parameters(self.pieces)
        guides = self.guides()
        rows = []
        for name in RECIPES:
            fixed = Recipe.parse(name).quantization(self.shapes)
            size_bytes = self.size_bytes(fixed)
            row: dict[str, Any] = {
                "recipe": name,
                "bits_per_weight": round(8 * size_bytes / parameters, 3),
                "kl": round(self.divergence(self.widths(fixed)), 5),
            }
            for guide_name, guide in guides.items():
                chosen = self.allocate(size_bytes, guide)
                row[guide_name] = {
                    "bits_per_weight": round(8 * self.size_bytes(chosen) / parameters, 3),
                    "kl": round(self.divergence(self.widths(chosen)), 5),
                }
            print(json.dumps(row), file=sys.stderr)
            rows.append(row)
        return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    models = ("nano", "glm4", "glm")
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--tokens", type=int, default=960, help="of text, at least")
    args = parser.parse_args()
    report = {}
    for name in args.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if name == "nano":
                write_nano(folder)
                judge = Judge(folder, nano_dialogues(), args.tokens)
            else:
                write_random(folder, name)
                judge = Judge(folder, random_texts(), args.tokens)
            report[name] = {"tokens": sum(map(len, judge.texts)), "recipes": judge.report()}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
