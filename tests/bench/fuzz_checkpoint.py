"""Damage safetensors headers and indexes at random and see that each is opened or refused.

Prints one JSON line. Every mutant that opens is also read by MLX and by the safetensors library,
so that a file two readers may see differently counts as a disagreement. A mutant depends on the
seed and its number only: `--seed S --first N --count 1` repeats one.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from glm_mlx.checkpoint import Checkpoint
from glm_mlx.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
Files = dict[str, bytes]

VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 8, 0.0, 1.5, 1e300, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63,
    2**64 - 1, 2**64, 10**400, "", "a", "\ud800", "é\n", "x" * 300, "BF16", "F8_E4M3", "F64",
    "../model.safetensors", "/etc/passwd", "C:\\model.safetensors", *SHARDS, INDEX, [], {}, [0, 0],
    [65536] * 4, [1] * 1000, [0, 2**32], [8, 0], [-8, 0], [2**64 - 8, 2**64],
)  # fmt: skip
TOKENS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\ud800", b"\\u0000", b"-", b"-0", b"0",
    b"1e5", b"NaN", b"Infinity", b"null", b"9" * 5000, b"[" * 2000, b" " * 50, b"\x00", b"\xff",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"a":1,', b'"dtype":"U8",', b'"__metadata__":{},',
    b"version https://git-lfs", b'"shape":[0],',
)  # fmt: skip


class Pairs(list[list[Any]]):
    """A JSON object that may hold a key twice."""


def parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=lambda pairs: Pairs([key, v] for key, v in pairs))


def write(node: Any) -> str:
    if isinstance(node, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{write(v)}" for key, v in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(write, node)) + "]"
    return json.dumps(node)


def slots(node: Any) -> list[tuple[list[Any], int]]:
    """Return every (list, position) in the tree that holds a value: the places to damage."""
    if isinstance(node, Pairs):
        places = [(pair, 1) for pair in node]
    elif isinstance(node, list):
        places = [(node, i) for i in range(len(node))]
    else:
        places = []
    return [place for holder, i in places for place in ((holder, i), *slots(holder[i]))]


def damage_tree(rng: random.Random, text: bytes) -> bytes:
    """Change values, keys or entries of a JSON text that stays JSON."""
    tree = parse(text.decode())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not (places := slots(tree)):
            break
        holder, i = rng.choice(places)
        value = holder[i]
        match rng.randrange(7):
            case 0 if type(value) is int:
                holder[i] += rng.choice((-8, -4, -1, 1, 4, 8, 2**32, 2**64))
            case 1 if isinstance(value, list):
                rng.shuffle(value)
            case 2 if isinstance(value, list) and value:
                del value[rng.randrange(len(value))]
            case 3 if isinstance(value, Pairs) and value:
                value.append([rng.choice(value)[0], rng.choice((rng.choice(value)[1], 0, None))])
            case 4:  # swap two values, wherever they stand
                other, j = rng.choice(places)
                holder[i], other[j] = parse(write(other[j])), parse(write(value))
            case 5:
                for _ in range(rng.choice((1, 5, 120))):
                    holder[i] = [holder[i]]
            case _:
                holder[i] = parse(write(rng.choice(VALUES)))  # a copy
    return write(tree).encode()


def damage_bytes(rng: random.Random, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(rng.choice((1, 1, 2, 4))):
        marks = [i for i, byte in enumerate(data) if byte in b'{}[]:,"0']
        at = rng.choice((rng.randrange(len(data) + 1), rng.choice(marks or [0])))
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at:at] = rng.choice(TOKENS)
            case 2:
                del data[at : at + rng.choice((1, 1, 8, 100))]
            case 3:
                start = rng.randrange(len(data) + 1)
                data[at:at] = data[start : start + rng.randrange(80)]
            case _:
                data[at : at + 1] = rng.choice(b'0123456789-,:[]{}" ').to_bytes()
    return bytes(data)


def move_tensors(rng: random.Random, header: bytes, data: bytes) -> tuple[bytes, bytes]:
    """Move or double tensors and fit the data: overlaps and gaps that no other rule refuses."""
    tree = json.loads(header)
    names = sorted(tree.keys() - {"__metadata__"})
    delta = rng.choice((-16, -8, -1, 0, 1, 8, 16))
    for name in rng.sample(names, rng.randrange(1, len(names) + 1)):
        entry = tree[name]
        moved = {**entry, "data_offsets": [offset + delta for offset in entry["data_offsets"]]}
        tree[name + rng.choice(("", "2"))] = moved
    end = max(tree[name]["data_offsets"][1] for name in names)
    return json.dumps(tree).encode(), data[:end].ljust(end, b"\0")


def damage_shard(rng: random.Random, shard: bytes) -> bytes:
    """Damage the length field, the header or the size of one file."""
    length = int.from_bytes(shard[:8], "little")
    header, data = shard[8 : 8 + length], shard[8 + length :]
    match rng.randrange(9):
        case 0:
            length = rng.choice(
                (0, 1, length - 1, length + 1, length + 8, len(shard), 10**8 + 1, 2**63, 2**64 - 1,
                 rng.getrandbits(64), rng.randrange(2 * len(shard)))
            )  # fmt: skip
            return struct.pack("<Q", length) + header + data
        case 1:
            return shard[: rng.randrange(len(shard))]
        case 2:
            return shard + bytes(rng.choice((1, 8, 100)))
        case 3:
            header, data = move_tensors(rng, header, data)
        case 4 | 5:
            header = damage_bytes(rng, header)
        case _:
            header = damage_tree(rng, header)
    return struct.pack("<Q", len(header)) + header + data


def damage_index(rng: random.Random, index: bytes) -> bytes:
    return rng.choice((damage_bytes, damage_tree))(rng, index)


def base_folders() -> tuple[Files, Files]:
    """Return a single-file and a sharded folder of a few small tensors each."""
    tensors: dict[str, npt.NDArray[Any]] = {
        "model.embed_tokens.weight": np.arange(32, dtype=np.float16).reshape(8, 4),
        "model.norm.weight": np.ones(4, np.float32),
        "model.scale": np.ones((), np.float32),
        "model.none": np.zeros((0, 4), np.uint8),
        "lm_head.weight": np.arange(8, dtype=np.uint32).reshape(2, 4),
        "lm_head.bias": np.zeros(2, np.int64),
    }
    names = list(tensors)
    parts = [{name: tensors[name] for name in half} for half in (names[:3], names[3:])]
    places = {name: shard for shard, part in zip(SHARDS, parts, strict=True) for name in part}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": places}).encode()
    sharded = {shard: save(part) for shard, part in zip(SHARDS, parts, strict=True)}
    return {"model.safetensors": save(tensors, {"format": "mlx"})}, {**sharded, INDEX: index}


def mutate(rng: random.Random, files: Files) -> Files:
    name = rng.choice(sorted(files))
    damage: Callable[[random.Random, bytes], bytes] = (
        damage_index if name == INDEX else damage_shard
    )
    return {**files, name: damage(rng, files[name])}


def overwrite(file: Path, content: bytes) -> None:
    """Write in place: some file systems flush to disk when a file was emptied first."""
    with file.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


def try_folder(folder: Path, files: Files) -> str:
    """Return what became of one folder: opened, refused, or how the readers disagree."""
    try:
        checkpoint = Checkpoint.open(folder)
    except CheckpointError as error:
        return "refused" if str(error).isprintable() else f"other: unprintable {error!r}"
    arrays = checkpoint.read()
    mx.eval(arrays)
    found = {name: array.shape for name, array in arrays.items()}
    if found != {name: info.shape for name, info in checkpoint.tensors.items()}:
        return "disagreement: mlx sees other tensors"
    for shard in {info.file.name for info in checkpoint.tensors.values()}:
        try:
            deserialize(files[shard])  # type: ignore[no-untyped-call]
        except SafetensorError as error:
            return f"disagreement: safetensors refuses {shard}: {error}"
    return "opened"


def fuzz(count: int, seed: int, first: int = 0) -> dict[str, object]:
    """Try `count` mutants and return the figures, with up to five failures spelt out."""
    outcomes: Counter[str] = Counter(opened=0, refused=0, other_exceptions=0, disagreements=0)
    failures: list[str] = []
    slowest_seconds = 0.0
    with tempfile.TemporaryDirectory() as name:
        folders = []
        for i, files in enumerate(base_folders()):
            folder = Path(name, str(i))
            folder.mkdir()
            for file, content in files.items():
                (folder / file).write_bytes(content)
            assert try_folder(folder, files) == "opened", "the undamaged folder is refused"
            folders.append((folder, files))
        start = time.perf_counter()
        for number in range(first, first + count):
            rng = random.Random(f"{seed}:{number}")
            folder, files = rng.choice(folders)
            mutant = mutate(rng, files)
            changed = [file for file in files if mutant[file] != files[file]]
            for file in changed:
                overwrite(folder / file, mutant[file])
            began = time.perf_counter()
            try:
                outcome = try_folder(folder, mutant)
            except Exception as error:  # the very thing counted here
                outcome = f"other: {error!r}"
            slowest_seconds = max(slowest_seconds, time.perf_counter() - began)
            kind = {"disagreement": "disagreements", "other": "other_exceptions"}
            outcomes[kind.get(outcome.split(":")[0], outcome)] += 1
            if outcome not in ("opened", "refused"):
                failures.append(f"{number}: {outcome}"[:300])
            for file in changed:
                overwrite(folder / file, files[file])
    return {
        "count": count,
        "seed": seed,
        **outcomes,
        "slowest_ms": round(slowest_seconds * 1e3, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "failures": failures[:5],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    options = parser.parse_args()
    figures = fuzz(options.count, options.seed, options.first)
    print(json.dumps(figures))
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
