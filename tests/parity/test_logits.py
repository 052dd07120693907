"""Logits of every layout, rope spelling and shape against transformers, in fp32."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest
from makers.folders import Shape
from makers.matrix import LAYOUTS, LIMIT, Case, all_cases, long_cases, make_case, sampled_cases

from glm_mlx.load import load_model

pytestmark = pytest.mark.parity


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", sampled_cases(), ids=by_name)
def test_logits(case: Case, oracle: ModuleType, tmp_path: Path) -> None:
    assert oracle.measure(case, tmp_path) <= LIMIT


def test_every_two_values_meet_in_the_sample() -> None:
    def meetings(cases: Sequence[Case]) -> set[tuple[str, str]]:
        return {pair for c in cases for pair in itertools.combinations(c.name.split("-"), 2)}

    assert meetings(sampled_cases()) == meetings(all_cases())


@pytest.mark.parametrize("case", long_cases(), ids=by_name)
def test_logits_at_2000_positions(case: Case, oracle: ModuleType, tmp_path: Path) -> None:
    assert oracle.measure(case, tmp_path) <= LIMIT


@pytest.mark.parametrize("factor", [2.0, 4.0, 8.0])
def test_logits_of_published_head_and_context_sizes(
    factor: float, oracle: ModuleType, tmp_path: Path
) -> None:
    """YaRN as the model card writes it: 128-wide heads, 32,768 positions."""
    yarn = {"factor": factor, "original_max_position_embeddings": 32768}
    shape = Shape(head_dim=128, max_position_embeddings=32768, yarn=yarn, bias=False)
    assert oracle.measure(Case("glm4", "legacy", shape), tmp_path) <= LIMIT


@pytest.mark.parametrize(
    "options",
    [
        {"attention_factor": 1.5},
        {"mscale": 0.7, "mscale_all_dim": 1.3},
        {"beta_fast": 4.0, "beta_slow": 0.25},
        {"truncate": False},
        {"truncate": False, "beta_fast": 8.0},
        {"beta_fast": 1e-3, "beta_slow": 1e-3},  # an empty ramp
    ],
    ids=str,
)
def test_every_yarn_option(options: dict[str, float], oracle: ModuleType, tmp_path: Path) -> None:
    yarn = {"factor": 4.0, "original_max_position_embeddings": 512, **options}
    shape = Shape(head_dim=64, yarn=yarn)
    assert oracle.measure(Case("glm4", "parameters", shape), tmp_path) <= LIMIT


@pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
def test_a_left_padded_batch(layout: tuple[str, str], oracle: ModuleType, tmp_path: Path) -> None:
    """Each row's own tokens; what stands on the padding is nobody's business."""
    lengths = (40, 64, 1, 63)
    model = oracle.write_case(make_case(layout), tmp_path)
    decoder, _ = load_model(tmp_path)
    ids = oracle.make_ids(len(lengths), max(lengths))
    real = np.arange(max(lengths)) >= max(lengths) - np.array(lengths)[:, None]
    positions = np.maximum(real.cumsum(axis=1) - 1, 0)
    theirs = oracle.their_logits(model, ids, attention_mask=real, position_ids=positions)
    cache = decoder.make_cache(left_padding=[max(lengths) - length for length in lengths])
    ours = np.array(decoder(mx.array(ids), cache))
    assert np.abs(ours - theirs)[real].max() / np.abs(theirs[real]).max() <= LIMIT


@pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
def test_greedy_ids(layout: tuple[str, str], oracle: ModuleType, tmp_path: Path) -> None:
    """Token by token through both caches; here a wrong position would add up."""
    model = oracle.write_case(make_case(layout), tmp_path)
    decoder, _ = load_model(tmp_path)
    ids = oracle.make_ids(1, 12)
    theirs = oracle.their_greedy(model, ids, tokens=48)
    cache = decoder.make_cache()
    logits, ours = decoder(mx.array(ids), cache), []
    for _ in range(48):
        ours.append(logits[0, -1].argmax().item())
        logits = decoder(mx.array([ours[-1:]]), cache)
    assert ours == theirs
