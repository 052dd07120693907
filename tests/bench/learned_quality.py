"""What learned quantization keeps: KL of a packed model from its floats on held-out text; JSON.

    python tests/bench/learned_quality.py [--model nano|wide] [--bits 4 3 2] [--groups 64]

Plain rounding, our AWQ, and mlx-lm's GPTQ and DWQ, at equal bytes: every matrix, the embedding and
the head too, has one width. Each arm runs in its own process, which its peak memory is of.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from glm_mlx.checkpoint import Checkpoint
from glm_mlx.config import Quantization, QuantSpec, parse_config
from glm_mlx.convert.awq import learn_transforms
from glm_mlx.load import load_model
from glm_mlx.model.decoder import Decoder
from glm_mlx.text import Tokenizer

ROOT = Path(__file__).parents[2]
NANO = ROOT / "glm_mlx" / "nano"
ARMS = ("plain", "awq", "gptq", "dwq")
Rows = list[list[int]]
WIDE: dict[str, Any] = {
    "model_type": "glm4",
    "architectures": ["Glm4ForCausalLM"],
    "vocab_size": 2048,
    "hidden_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 2048,
    "hidden_act": "silu",
    "attention_bias": True,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": [0],
    "pad_token_id": 0,
}


def nano() -> tuple[Decoder, Rows, Rows]:
    """The embedded model's floats, dialogues it learnt and dialogues held out."""
    sys.path.insert(0, str(ROOT / "examples" / "train_nano"))
    from corpus import dialogue

    packed, config = load_model(NANO, fuse_qkv=False)
    floats = {}
    for path, module in packed.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            spec = (module.group_size, module.bits, module.mode)
            floats[f"{path}.weight"] = mx.dequantize(
                module.weight, module.scales, module.biases, *spec
            )
    for name, array in tree_flatten(packed.parameters()):
        if not name.endswith((".scales", ".biases")):
            floats.setdefault(name, array)
    tokenizer = Tokenizer.from_folder(NANO, vocab_size=config.vocab_size, family=config.family)

    def draw(count: int, seed: int, test: bool) -> Rows:
        rng, rows = Random(seed), []
        while len(rows) < count:
            drawn = dialogue(rng, test=test)
            if not drawn.text:
                prompt = tokenizer.encode_chat(drawn.messages, tools=drawn.tools)
                said = "\n" + drawn.completions[0] + drawn.stop
                rows.append(prompt + tokenizer.encode(said, prefix=False))
        return rows

    return (
        filled(replace(config, quantization=None), floats),
        draw(256, 3, False),
        draw(96, 5, True),
    )


def wide() -> tuple[Decoder, Rows, Rows]:
    """Random weights with what makes real ones hard: heavy tails and a few loud channels."""
    decoder = Decoder(parse_config(WIDE))
    random = np.random.default_rng(0)
    E, V = WIDE["hidden_size"], WIDE["vocab_size"]
    loud = random.choice(E, 12, replace=False)
    floats = {}
    for name, like in tree_flatten(decoder.parameters()):
        shape = like.shape
        if len(shape) == 2:
            spread = [
                np.exp(0.3 * random.standard_normal(s)) for s in ((1, shape[1]), (shape[0], 1))
            ]
            array = random.standard_t(5, shape) * shape[1] ** -0.5 * spread[0] * spread[1]
            if "embed" in name:
                array *= E**0.5
                array[:, loud] *= 15
        elif "norm" in name:
            array = np.exp(0.3 * random.standard_normal(shape))
            if "post_self" in name or "post_mlp" in name:
                array *= 0.3
            else:
                array[loud] *= 0.1
        else:
            array = 0.3 * random.standard_normal(shape)
        floats[name] = mx.array(array.astype(np.float32))
    ids = random.permutation(V)[np.minimum(random.zipf(1.3, 16 * 128 + 12 * 128), V) - 1]
    rows = ids.reshape(-1, 128).tolist()
    return filled(decoder.config, floats), rows[:16], rows[16:]


def filled(config: Any, floats: dict[str, mx.array]) -> Decoder:
    decoder = Decoder(config)
    decoder.load_weights(list(floats.items()))
    mx.eval(decoder.parameters())
    return decoder


def plain(decoder: Decoder, text: Rows, bits: int, group_size: int) -> Decoder:
    nn.quantize(decoder, group_size=group_size, bits=bits)
    return decoder


def awq(decoder: Decoder, text: Rows, bits: int, group_size: int) -> Decoder:
    floats = dict(tree_flatten(decoder.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        mx.save_safetensors(f"{folder}/model.safetensors", floats)
        quantization = Quantization(QuantSpec(bits, group_size, "affine"))
        checkpoint = Checkpoint.open(Path(folder))
        transforms = learn_transforms(checkpoint, decoder.config, quantization, text)
    scaled = {n: transforms[n].apply(a, 0) if n in transforms else a for n, a in floats.items()}
    return plain(filled(decoder.config, scaled), text, bits, group_size)


def gptq(decoder: Decoder, text: Rows, bits: int, group_size: int) -> Decoder:
    from mlx_lm.quant.gptq import gptq_quantize

    length = 128  # it takes rows of one length
    ids = np.array(list(chain.from_iterable(text)))
    rows = mx.array(ids[: len(ids) // length * length].reshape(-1, length))
    packed, _ = gptq_quantize(decoder, rows, bits, group_size, bits, group_size)
    assert isinstance(packed, Decoder)
    return packed


def dwq(decoder: Decoder, text: Rows, bits: int, group_size: int) -> Decoder:
    from mlx import optimizers
    from mlx_lm.quant.dwq import dwq_quantize

    floats = dict(tree_flatten(decoder.parameters()))
    student = plain(filled(decoder.config, floats), text, bits, group_size)
    student.freeze()
    data = [(row, 0) for row in text]
    dwq_quantize(
        student,
        lambda batch, index, split: decoder(batch),
        optimizers.Adam(learning_rate=DWQ_RATE, bias_correction=True),
        data,
        data[:4],
        batch_size=4,
        max_seq_length=513,
        seed=0,
        dtype=mx.float32,
    )
    return student


# mlx-lm's default, 1e-6, is for thirty times as many batches.
DWQ_RATE = 1e-4
METHODS: dict[str, Callable[[Decoder, Rows, int, int], Decoder]] = {
    "plain": plain,
    "awq": awq,
    "gptq": gptq,
    "dwq": dwq,
}


def divergences(reference: Decoder, packed: Decoder, text: Rows) -> list[float]:
    """The sum of KL over the tokens of each row, in nats."""
    found = []
    for row in text:
        p, q = (model(mx.array([row])) for model in (reference, packed))
        p, q = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (p, q))
        found.append(float(mx.sum(mx.exp(p) * (p - q)).item()))
    return found


def measure(model: str, arm: str, bits: int, group_size: int) -> dict[str, Any]:
    """Run one arm in this process."""
    source = {"nano": nano, "wide": wide}[model]
    reference, text, held_out = source()
    decoder = filled(reference.config, dict(tree_flatten(reference.parameters())))
    before, started = _peak_bytes(), time.process_time()
    packed = METHODS[arm](decoder, text, bits, group_size)
    mx.eval(packed.parameters())
    seconds, peak_bytes = time.process_time() - started, _peak_bytes()
    return {
        "kl": divergences(reference, packed, held_out),
        "tokens": sum(map(len, held_out)),
        "bytes": sum(array.nbytes for _, array in tree_flatten(packed.parameters())),
        "cpu_seconds": round(seconds, 1),
        "peak_above_loaded_mb": round((peak_bytes - before) / 1e6, 1),
    }


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=("nano", "wide"), default="nano")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--groups", type=int, nargs="+", default=[64])
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=list(ARMS))
    parser.add_argument("--one", action="store_true", help="measure in this process")
    args = parser.parse_args()
    if args.one:
        found = measure(args.model, args.arms[0], args.bits[0], args.groups[0])
        print(json.dumps(found))
        return
    for bits in args.bits:
        for group_size in args.groups:
            plain_kl: list[float] | None = None
            for arm in args.arms:
                if arm == "gptq" and bits not in (2, 4, 8):
                    continue  # what mlx-lm's packs
                row = {"model": args.model, "bits": bits, "group_size": group_size, "arm": arm}
                found = run_alone(args.model, arm, bits, group_size)
                kl = found.pop("kl")
                print(json.dumps(row | found | summary(kl, found["tokens"], plain_kl)), flush=True)
                if arm == "plain":
                    plain_kl = kl


def run_alone(model: str, arm: str, bits: int, group_size: int) -> dict[str, Any]:
    """Measure an arm in a process of its own."""
    options = ["--model", model, "--arms", arm, "--bits", str(bits), "--groups", str(group_size)]
    done = subprocess.run([sys.executable, __file__, "--one", *options], capture_output=True)
    if done.returncode:
        sys.exit(done.stderr.decode())
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(kl: list[float], tokens: int, plain_kl: list[float] | None) -> dict[str, float]:
    """Mean KL a token; and the change from plain rounding, with its standard error over rows."""
    found = {"kl": round(sum(kl) / tokens, 5)}
    if plain_kl is not None:
        change = np.array(kl) - np.array(plain_kl)
        found["change"] = round(float(change.sum()) / tokens, 5)
        found["change_error"] = round(float(change.std()) * len(kl) ** 0.5 / tokens, 5)
    return found


if __name__ == "__main__":
    main()
