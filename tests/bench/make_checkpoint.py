"""Write a random bf16 checkpoint of any size, in any of the three layouts, in little memory.

    python tests/bench/make_checkpoint.py FOLDER [--layout chatglm] [--layers 40] [--shape JSON]

The default shape is the real 9B with its full vocabulary: 19 GB at 40 layers, 4.9 GB at 6. Equal
arguments write equal bytes. Imports nothing of the package, so that a folder is evidence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.folders import CHAT_TEMPLATE, DIALECTS, Shape, make_config
from makers.vocabulary import stop_ids, write_tokenizer

REAL_9B = Shape(
    hidden_size=4096,
    num_layers=40,
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    intermediate_size=13696,
    vocab_size=151552,
    max_position_embeddings=32768,
)
DEVIATION = 0.02  # what transformers initializes with
SHARD_BYTES = 2_000_000_000
# No multiple of a row: no two rows of a tensor begin at the same place of the block.
BLOCK_VALUES = (1 << 20) - 3

TensorShapes = Mapping[str, tuple[int, ...]]
_HF_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "layer": "model.layers.{}.",
    "attention": "self_attn.",
    "out": "o_proj",
    "up": "gate_up_proj",
    "down": "down_proj",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
_REMOTE_NAMES = {
    "embedding": "transformer.embedding.word_embeddings.weight",
    "layer": "transformer.encoder.layers.{}.",
    "attention": "self_attention.",
    "out": "dense",
    "up": "dense_h_to_4h",
    "down": "dense_4h_to_h",
    "norm": "transformer.encoder.final_layernorm.weight",
    "head": "transformer.output_layer.weight",
}


def tensor_shapes(layout: str, shape: Shape) -> TensorShapes:
    """Return every tensor of a layout in the order the published shards have them."""
    E, F, V = shape.hidden_size, shape.intermediate_size, shape.vocab_size
    A, K = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    names = _REMOTE_NAMES if layout == "chatglm" else _HF_NAMES
    fused = {"query_key_value": A + 2 * K}
    parts = fused if layout == "chatglm" else {"q_proj": A, "k_proj": K, "v_proj": K}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if layout == "glm4":
        norms += ["post_self_attn_layernorm", "post_mlp_layernorm"]
    shapes: dict[str, tuple[int, ...]] = {names["embedding"]: (V, E)}
    if layout == "chatglm":
        shapes["transformer.rotary_pos_emb.inv_freq"] = (shape.head_dim // 4,)
    for i in range(shape.num_layers):
        layer = names["layer"].format(i)
        attention = layer + names["attention"]
        for part, rows in parts.items():
            shapes[f"{attention}{part}.weight"] = (rows, E)
            if shape.bias:
                shapes[f"{attention}{part}.bias"] = (rows,)
        shapes[f"{attention}{names['out']}.weight"] = (E, A)
        shapes[f"{layer}mlp.{names['up']}.weight"] = (2 * F, E)
        shapes[f"{layer}mlp.{names['down']}.weight"] = (E, F)
        shapes |= {f"{layer}{norm}.weight": (E,) for norm in norms}
    return shapes | {names["norm"]: (E,), names["head"]: (V, E)}


def split(shapes: TensorShapes, shard_bytes: int) -> list[TensorShapes]:
    """Fill shards in order, as save_pretrained does."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size_bytes = 0
    for name, shape in shapes.items():
        tensor_bytes = count(shape) * 2
        if shards[-1] and size_bytes + tensor_bytes > shard_bytes:
            shards.append({})
            size_bytes = 0
        shards[-1][name] = shape
        size_bytes += tensor_bytes
    return list(shards)


def count(shape: tuple[int, ...]) -> int:
    """Return the number of values of a tensor."""
    return int(np.prod(shape, dtype=np.int64))


def random_block(random: np.random.Generator, size: int, centre: float) -> npt.NDArray[np.uint16]:
    """Return `(size,)` normal values around the centre as the bits of bf16."""
    values = random.standard_normal(size, np.float32) * np.float32(DEVIATION) + np.float32(centre)
    rounded: npt.NDArray[np.uint16] = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    return rounded


def tensor_bytes(name: str, shape: tuple[int, ...], seed: list[int]) -> Iterator[memoryview]:
    """Yield a tensor in pieces: one random block of its own, over and over."""
    values = count(shape)
    centre = 1.0 if name.endswith("norm.weight") else 0.0
    block = random_block(np.random.default_rng(seed), min(values, BLOCK_VALUES), centre)
    for start in range(0, values, len(block)):
        yield block[: values - start].data.cast("B")


def write_shard(file: BinaryIO, shapes: TensorShapes, seed: int, first: int) -> None:
    """Write one safetensors file; `first` is the number of its first tensor in the checkpoint."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        stop = offset + count(shape) * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for number, (name, shape) in enumerate(shapes.items(), first):
        for piece in tensor_bytes(name, shape, [seed, number]):
            file.write(piece)


def make_checkpoint(
    folder: Path,
    layout: str = "glm4",
    shape: Shape = REAL_9B,
    *,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
) -> Path:
    """Write a complete model folder and return it; the tokenizer is smaller than the vocabulary."""
    folder.mkdir(parents=True)
    shards = split(tensor_shapes(layout, shape), shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        file_name = "model.safetensors"
        if len(shards) > 1:
            file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / file_name).open("wb") as file:
            write_shard(file, shapes, seed, first=len(weight_map))
        weight_map |= dict.fromkeys(shapes, file_name)
    size_bytes = sum(2 * count(shape) for shapes in shards for shape in shapes.values())
    documents: dict[str, object] = {
        "config.json": make_config(layout, shape) | {"torch_dtype": "bfloat16"},
        "generation_config.json": {"do_sample": False, "eos_token_id": stop_ids()},
    }
    if len(shards) > 1:
        index = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
        documents["model.safetensors.index.json"] = index
    for file_name, document in documents.items():
        (folder / file_name).write_text(json.dumps(document, indent=2), encoding="utf-8")
    write_tokenizer(folder, layout, CHAT_TEMPLATE)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="write a random bf16 checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=DIALECTS, default="glm4")
    parser.add_argument("--layers", type=int, help="40 of the 9B if not given")
    parser.add_argument("--shape", type=json.loads, default={}, help="other sizes, as JSON")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape = replace(REAL_9B, **options.shape)
    if options.layers is not None:
        shape = replace(shape, num_layers=options.layers)
    make_checkpoint(
        options.folder, options.layout, shape, shard_bytes=options.shard_bytes, seed=options.seed
    )
    files = {path.name: path.stat().st_size for path in sorted(options.folder.iterdir())}
    print(json.dumps({"folder": str(options.folder), "files_bytes": files}))


if __name__ == "__main__":
    main()
