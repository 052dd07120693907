"""Each stage of sampling, and all in a row, against the classes transformers runs."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from glm_mlx.generate.sampling import Sampler, Sampling

pytestmark = pytest.mark.parity

VOCAB = 4000
PROMPT, REPLY = [5, 17, 17, 900], [31, 5, 31]
OPTIONS: list[dict[str, Any]] = [
    {"logit_bias": {7: 3.5, 3999: -2.0}},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"temperature": 0.35},
    {"temperature": 1.9},
    {"top_k": 1},
    {"top_k": 50},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.05},
    {"temperature": 0.8, "top_p": 0.8},
    {"temperature": 0.6, "top_k": 40, "top_p": 0.95},
    {
        "logit_bias": {7: 3.5},
        "repetition_penalty": 1.2,
        "temperature": 0.9,
        "top_k": 200,
        "top_p": 0.9,
        "min_p": 0.01,
    },
]


def transformers_probabilities(logits: Any, s: Sampling) -> Any:
    import torch
    from transformers.generation import logits_process as hf

    stages = hf.LogitsProcessorList()
    if s.logit_bias:
        stages.append(
            hf.SequenceBiasLogitsProcessor(
                [[[token], bias] for token, bias in s.logit_bias.items()]
            )
        )
    if s.repetition_penalty != 1:
        stages.append(hf.RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
    stages.append(hf.TemperatureLogitsWarper(s.temperature))
    if s.top_k:
        stages.append(hf.TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        stages.append(hf.TopPLogitsWarper(s.top_p))
    if s.min_p:
        stages.append(hf.MinPLogitsWarper(s.min_p))
    scores = stages(torch.tensor([PROMPT + REPLY]), torch.tensor(logits)[None].clone())
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("spread", [0.5, 2, 6])
def test_probabilities_equal_transformers(options: dict[str, Any], spread: float) -> None:
    logits = np.random.default_rng(3).normal(size=VOCAB).astype(np.float32) * spread
    one = Sampler(Sampling(seed=0, **options), PROMPT, VOCAB)
    counts = one.no_counts()
    for token in REPLY:
        counts = one.count(counts, mx.array(token))
    x = one.adjusted(mx.array(logits), counts)
    x, _ = one.warped(x - mx.max(x), exact=True)
    expected = transformers_probabilities(logits, one.sampling)
    ours = np.asarray(mx.softmax(x))
    assert np.array_equal(ours > 1e-30, expected > 1e-30)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-9)
