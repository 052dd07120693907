"""Process CPU time of drawing one token from GLM-4's 151,552 logits; prints JSON.

    python tests/bench/sampling_cost.py [--rounds N]

Ours against the same draw from a full sort, and against mlx-lm's sampler, alternating, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from glm_mlx.generate.sampling import Sampler, Sampling

VOCAB = 151_552
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.8},
    "top_k": {"temperature": 0.8, "top_k": 40},
    "top_k top_p": {"temperature": 0.6, "top_k": 40, "top_p": 0.95},
    "min_p": {"temperature": 0.8, "min_p": 0.05},
}


def mlx_lm_draw(options: dict[str, Any], logits: mx.array) -> Callable[[], list[mx.array]]:
    """mlx-lm's sampler behind the log-softmax its decode loop puts before it."""
    from mlx_lm.sample_utils import make_sampler

    named = {"temp" if name == "temperature" else name: value for name, value in options.items()}
    sampler = make_sampler(**named)
    return lambda: [sampler((logits - mx.logsumexp(logits, keepdims=True))[None])]


def our_draw(
    options: dict[str, Any], logits: mx.array, exact: bool
) -> Callable[[], list[mx.array]]:
    one = Sampler(Sampling(seed=0, **options), [0], VOCAB)
    return lambda: [part for part in one.draw(logits, 0, exact=exact) if part is not None]


def milliseconds(draw: Callable[[], list[mx.array]]) -> float:
    started = time.process_time()
    for _ in range(10):
        mx.eval(draw())
    return (time.process_time() - started) * 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="CPU time of a draw, as JSON")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    random = np.random.default_rng(0)
    logits = mx.array((random.normal(size=VOCAB) * 3).astype(np.float32))
    report = {}
    for name, options in OPTIONS.items():
        draws = {
            "ours": our_draw(options, logits, exact=False),
            "full_sort": our_draw(options, logits, exact=True),
            "mlx_lm": mlx_lm_draw(options, logits),
        }
        for draw in draws.values():
            mx.eval(draw())
        times: dict[str, list[float]] = {kind: [] for kind in draws}
        for _ in range(rounds):
            for kind, draw in draws.items():
                times[kind].append(milliseconds(draw))
        report[name] = {kind: round(statistics.median(row), 2) for kind, row in times.items()}
    covered = Sampler(Sampling(top_p=0.8, temperature=0.8), [0], VOCAB).draw(logits, 0).covered
    result = {
        "vocabulary": VOCAB,
        "unit": "ms of process CPU time a draw",
        "partial_sort_covers_top_p": bool(covered is not None and covered.item()),
        "draws": report,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
