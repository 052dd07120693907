"""Damage config files at random and see that each parses to a sound ModelConfig or is refused.

Prints one JSON line; exit status 1 when anything but a refusal escaped or nonsense came through.
A mutant depends on the seed and its number only: `--seed S --first N --count 1` repeats one.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.folders import DIALECTS, Shape, make_config

from glm_mlx.config import ModelConfig, parse_config
from glm_mlx.errors import ConfigError, GLMError
from glm_mlx.jsonfile import parse_json

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
AFFINE = {"bits": 4, "group_size": 64, "mode": "affine", "lm_head": {"bits": 8}, "model": False}
SEEDS: list[dict[str, Any]] = [
    make_config(dialect, shape, spelling=spelling) | extra
    for dialect in DIALECTS
    for spelling in ("legacy", "parameters")
    for shape in (Shape(), Shape(yarn={"factor": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5}))
    for extra in ({}, {"quantization": AFFINE, "quantization_config": AFFINE})
]
KEYS = sorted({key for data in SEEDS for key in data} | {*YARN, *AFFINE, "rope_ratio", "type"})
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 16, 64, 352, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.0,
    0.5, 1e-320, 1e308, -1e4, 5e6, "", "yarn", "glm", "chatglm", "silu", "mxfp4", "4", "\ud800",
    "a\nb", "x" * 400, [], {}, [1, 2], [151329, 151336, 151338], [[[]]], {"a": {"b": {}}}, YARN,
    AFFINE, {"quant_method": "awq"},
)  # fmt: skip
TOKENS = (
    "{", "}", "[", "]", ",", ":", '"', "\\", "\\ud800", "-", "1e999", "NaN", "Infinity", "null",
    "9" * 5000, "[" * 300, '{"":' * 200, "\x00", "é", "\ufeff", '"model_type":"glm",', "1e-400",
)  # fmt: skip


def containers(node: object) -> list[Any]:
    """Return every non-empty object and list in a JSON tree, outermost first."""
    if not isinstance(node, dict | list) or not node:
        return []
    children = node.values() if isinstance(node, dict) else node
    return [node, *(inner for child in children for inner in containers(child))]


def damage_tree(rng: random.Random, data: dict[str, Any]) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        holders = containers(data)
        holder = rng.choice([data, *holders])
        places = [*holder] if isinstance(holder, dict) else [*range(len(holder))]
        place = rng.choice(places or ["model_type"])
        value = json.loads(json.dumps(rng.choice(VALUES)))
        match rng.randrange(5):
            case 0 if places:
                del holder[place]
            case 1 if places:
                holder[place] = [holder[place]] * rng.choice((0, 1, 2))
            case 2 if isinstance(holder, dict):
                holder[rng.choice(KEYS)] = value
            case 3 if places and isinstance(holder[place], int):
                holder[place] = holder[place] * rng.choice((-1, 1, 2, 3, 10**9)) + rng.choice(
                    (0, 1)
                )
            case _:
                holder[place] = value
    return json.dumps(data).encode()


def damage_text(rng: random.Random, text: str) -> bytes:
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, size = rng.randrange(len(text) + 1), rng.choice((0, 1, 1, 8, 60))
        text = text[:at] + rng.choice(("", "", rng.choice(TOKENS))) + text[at + size :]
    raw = bytearray(text.encode())
    if raw and not rng.randrange(4):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def unsound(config: ModelConfig) -> str:
    """Return the first promise of a ModelConfig that is broken, or nothing."""
    numbers = [value for value in vars(config).values() if isinstance(value, int | float)]
    ids = [*config.eos_token_ids, *([] if config.pad_token_id is None else [config.pad_token_id])]
    promises = {
        "finite": all(math.isfinite(number) for number in numbers),
        "positive": min(config.num_layers, config.num_kv_heads, config.vocab_size) > 0,
        "grouped": config.num_heads % config.num_kv_heads == 0,
        "rotary": 0 < config.rotary_dim <= config.head_dim and config.rotary_dim % 2 == 0,
        "ids": all(0 <= token_id < config.vocab_size for token_id in ids),
        "theta": config.rope_theta > 1 and config.rms_norm_eps > 0,
        "yarn": config.yarn is None or 0 < config.yarn.attention_factor < math.inf,
        "hashable": isinstance(hash(config), int),
    }
    return next((name for name, kept in promises.items() if not kept), "")


def outcome_of(seed: int, number: int) -> tuple[str, float]:
    """Return what became of one mutant, and the milliseconds it took."""
    rng = random.Random(f"{seed}/{number}")
    data = json.loads(json.dumps(rng.choice(SEEDS)))
    raw = damage_tree(rng, data) if rng.random() < 0.6 else damage_text(rng, json.dumps(data))
    rope: Any = rng.choice((None, None, None, YARN, {"rope_theta": 5e6}, rng.choice(VALUES)))
    if rope and isinstance(rope, dict) and not rng.randrange(3):
        rope = rope | {rng.choice([*rope, *YARN]): rng.choice(VALUES)}
    start = time.perf_counter()
    try:
        parsed: Any = parse_json(raw, file="config.json", error=ConfigError)
        config = parse_config(parsed, rope=rope)
        broken = unsound(config)
        outcome = f"unsound: {broken}" if broken else "parsed"
    except GLMError as error:
        said = str(error)
        outcome = "refused" if said.isprintable() else f"unprintable: {said!r}"
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    return outcome, (time.perf_counter() - start) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    outcomes: Counter[str] = Counter()
    slowest_ms = 0.0
    escapes: dict[str, int] = {}
    for number in range(options.first, options.first + options.count):
        outcome, taken_ms = outcome_of(options.seed, number)
        outcomes[outcome if outcome in ("parsed", "refused") else "escaped"] += 1
        slowest_ms = max(slowest_ms, taken_ms)
        if outcome not in ("parsed", "refused") and len(escapes) < 5:
            escapes[outcome] = number
    report = {
        "count": options.count,
        "seed": options.seed,
        "parsed": outcomes["parsed"],
        "refused": outcomes["refused"],
        "escaped": outcomes["escaped"],
        "slowest_ms": round(slowest_ms, 2),
    }
    print(json.dumps(report | ({"escapes": escapes} if escapes else {})))
    return 1 if outcomes["escaped"] else 0


if __name__ == "__main__":
    sys.exit(main())
