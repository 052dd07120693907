"""Sampling against a plain full sort, and what no option or logit may do to it."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from glm_mlx.errors import NumericError, OptionError
from glm_mlx.generate.sampling import Sampler, Sampling

VOCAB = 5000  # wider than the partial sort
Floats = npt.NDArray[np.float64]
RANDOM = np.random.default_rng(0)
RANKS = np.arange(VOCAB)
LOGITS: dict[str, npt.NDArray[Any]] = {
    "peaked": RANDOM.normal(size=VOCAB).astype(np.float32) * 6,
    "plain": RANDOM.normal(size=VOCAB).astype(np.float32) * 2,
    "flat": RANDOM.normal(size=VOCAB).astype(np.float32) * 0.05,
    "tied": np.round(RANDOM.normal(size=VOCAB).astype(np.float32) * 8) / 4,
    "equal": np.ones(VOCAB, np.float32),
    "mostly out": np.where(RANKS % 100, -np.inf, RANKS / 999).astype(np.float32),
}


def sampler(prompt: list[int] | None = None, vocab_size: int = VOCAB, **options: Any) -> Sampler:
    return Sampler(Sampling(**{"seed": 1, **options}), prompt or [0], vocab_size)


def reference(logits: npt.NDArray[np.float32], s: Sampling) -> Floats:
    """Temperature and filters as the definition says, by sorting everything; in float64."""
    x = (logits.astype(np.float64) - logits.max()) / s.temperature
    if 0 < s.top_k < len(x):
        x[x < np.sort(x)[-s.top_k]] = -np.inf
    if s.top_p < 1:
        p = np.exp(x) / np.exp(x).sum()
        order = np.sort(p)[::-1]
        above = np.cumsum(order) - order
        x[p < order[above < s.top_p][-1]] = -np.inf
    x[x < np.log(max(s.min_p, 1e-300))] = -np.inf
    return np.asarray(x)


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_filters_equal_a_full_sort(name: str, temperature: float) -> None:
    shifted = mx.array(LOGITS[name] - LOGITS[name].max())
    filters = itertools.product((0, 1, 40, 3000, 10**9), (0.05, 0.8, 0.97, 1.0), (0, 0.1))
    for top_k, top_p, min_p in filters:
        one = sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        x, covered = one.warped(shifted)
        if covered is not None and not covered.item():
            x, covered = one.warped(shifted, exact=True)
            assert covered is None
        expected = reference(LOGITS[name], one.sampling)
        kept = np.isfinite(expected)
        assert np.array_equal(np.isfinite(np.asarray(x)), kept), one.sampling
        np.testing.assert_allclose(np.asarray(x)[kept], expected[kept], rtol=1e-5, atol=1e-6)


def test_partial_sort_knows_when_it_is_not_enough() -> None:
    def covered(name: str, **options: Any) -> bool | None:
        flag = sampler(**options).warped(mx.array(LOGITS[name] - LOGITS[name].max()))[1]
        return None if flag is None else bool(flag.item())

    assert covered("peaked", top_p=0.9) is True
    assert covered("flat", top_p=0.9) is False
    assert covered("flat", top_p=0.9, top_k=50) is None
    assert covered("flat", min_p=0.1) is None


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_partial_and_full_sort_draw_the_same_token(name: str, top_p: float) -> None:
    one, logits = sampler(top_p=top_p), mx.array(LOGITS[name])
    for step in range(5):
        token = one.draw(logits, step).read()
        assert token in (None, one.draw(logits, step, exact=True).read())


def test_bias_and_penalties() -> None:
    logits = LOGITS["plain"]
    one = sampler(
        prompt=[3, 4, 4],
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={3: 2.5, 9: -100.0},
    )
    counts = one.no_counts()
    for token in (7, 9, 7):
        counts = one.count(counts, mx.array(token, mx.uint32))
    expected = logits.astype(np.float64)
    expected[[3, 9]] += [2.5, -100]
    seen = [3, 4, 7, 9]
    expected[seen] = np.where(expected[seen] < 0, expected[seen] * 1.3, expected[seen] / 1.3)
    expected[7] -= 0.5 + 2 * 0.25
    expected[9] -= 0.5 + 0.25
    np.testing.assert_allclose(one.adjusted(mx.array(logits), counts), expected, rtol=1e-5)


def test_no_penalty_counts_nothing() -> None:
    one = sampler(logit_bias={1: 1.0})
    assert one.no_counts() is None
    assert one.count(None, mx.array(1)) is None


def test_draws_follow_the_distribution() -> None:
    logits = mx.log(mx.array([0.5, 0.3, 0.15, 0.05]))
    one = sampler(vocab_size=4)
    drawn = np.bincount([one.draw(logits, step).read() or 0 for step in range(1500)], minlength=4)
    expected = 1500 * np.array([0.5, 0.3, 0.15, 0.05])
    assert ((drawn - expected) ** 2 / expected).sum() < 16.27  # chi-square, 3 degrees, p = 0.001


def test_equal_logits_draw_every_token() -> None:
    one = sampler(vocab_size=6, top_p=0.5)
    assert {one.draw(mx.zeros(6), step).read() for step in range(100)} == set(range(6))


@pytest.mark.parametrize("temperature", [0, 1e-320, 1e-6])
@pytest.mark.parametrize("name", ["peaked", "plain", "mostly out"])
def test_no_temperature_is_too_low(name: str, temperature: float) -> None:
    one = sampler(temperature=temperature, top_p=0.9)
    assert one.draw(mx.array(LOGITS[name]), 0).read() == LOGITS[name].argmax()


@pytest.mark.parametrize("scale", [1e-3, 1e30, 1e38])
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e300])
def test_no_scale_of_finite_logits_fails(scale: float, temperature: float) -> None:
    logits = mx.array(np.linspace(-scale, scale, 50, dtype=np.float32))
    options = {"top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "presence_penalty": 1.0}
    one = sampler(None, 50, temperature=temperature, **options)
    assert one.draw(logits, 0, one.no_counts()).read() in range(50)


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_p": 0.9}, {"top_k": 3}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_logits_are_an_error(options: dict[str, Any], value: float) -> None:
    logits = LOGITS["plain"].copy()
    logits[4321] = value
    with pytest.raises(NumericError, match="NaN or infinite"):
        sampler(**options).draw(mx.array(logits), 0).read()


def test_all_tokens_ruled_out_is_an_error() -> None:
    with pytest.raises(NumericError):
        sampler().draw(mx.full((VOCAB,), -mx.inf), 0).read()


def test_padding_rows_of_the_head_are_never_drawn() -> None:
    logits = mx.array([0.0, 1.0, 50.0, 50.0])
    for temperature in (0, 1):
        one = sampler(vocab_size=2, temperature=temperature)
        assert {one.draw(logits, step).read() for step in range(20)} <= {0, 1}


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_widened(dtype: mx.Dtype) -> None:
    logits = mx.array(LOGITS["plain"]).astype(dtype)
    one = sampler(top_p=0.9)
    assert one.draw(logits, 3).read() == one.draw(logits.astype(mx.float32), 3).read()


def test_same_seed_same_draws_in_any_thread_and_order() -> None:
    logits = mx.array(LOGITS["plain"])

    def draws(steps: list[int], **options: Any) -> list[int | None]:
        one = sampler(**options)
        return [one.draw(logits, step).read() for step in steps]

    forward = draws([0, 1, 2, 3, 4, 5])
    mx.random.seed(99)
    assert draws([5, 4, 3, 2, 1, 0])[::-1] == forward
    assert len(set(forward)) > 3
    assert draws([0, 1, 2, 3, 4, 5], seed=2) != forward
    elsewhere: list[list[int | None]] = []

    def work() -> None:
        elsewhere.append(draws([0, 1, 2, 3, 4, 5]))
        mx.clear_streams()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert elsewhere == [forward]


def test_global_random_state_is_left_alone() -> None:
    mx.random.seed(7)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(7)
    sampler(top_p=0.9).draw(mx.array(LOGITS["plain"]), 0).read()
    assert mx.random.uniform(shape=(4,)).tolist() == expected


def test_seed_is_drawn_and_told_where_none_is_given() -> None:
    seeds = {sampler(seed=None).seed for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**53 for seed in seeds)
    assert sampler(seed=0).seed == 0


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**64 - 1])
def test_every_64_bit_seed_works(seed: int) -> None:
    assert sampler(seed=seed).draw(mx.zeros(VOCAB), 0).read() in range(VOCAB)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, float("nan"), float("inf"), "1", True, None, 10**400]),
        ("top_p", [0, -0.5, 1.01, float("nan"), "x", True]),
        ("top_k", [-1, 1.0, "5", True, None]),
        ("min_p", [-0.1, 1.1, float("nan"), False]),
        ("repetition_penalty", [0, -1, float("inf"), float("nan"), "a", True]),
        ("presence_penalty", [2.1, -2.1, float("nan"), None]),
        ("frequency_penalty", [2.1, -2.1, float("nan"), True]),
        ("seed", [2**64, -(2**63) - 1, 1.5, "1", True]),
        ("logit_bias", [[1], None, {"1": 1.0}, {1: float("nan")}, {1: float("inf")}]),
        ("logit_bias", [{1: "x"}, {True: 1.0}, {1.0: 1.0}, {1: 10**400}]),
    ],
)
def test_bad_options_are_named(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(OptionError, match=name) as caught:
            Sampling(**{name: value})  # type: ignore[arg-type]
        assert caught.value.field == name


@pytest.mark.parametrize("token", [-1, VOCAB, 10**30])
def test_bias_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(OptionError, match="vocabulary ends at 4999") as caught:
        sampler(logit_bias={token: 1.0})
    assert caught.value.field == "logit_bias"


def test_options_are_a_snapshot() -> None:
    bias = {1: 1.0}
    sampling = Sampling(logit_bias=bias)
    bias[2] = 2.0
    assert sampling.logit_bias == {1: 1.0}
    assert hash(sampling) == hash(Sampling())
