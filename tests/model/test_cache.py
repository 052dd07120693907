"""The cache keeps what it was given, forgets what it is told to, and does not copy itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_mlx.model.cache import BatchKVCache, KVCache

B, K, D = 2, 3, 4
CacheMaker = Callable[[], KVCache]
KINDS: dict[str, CacheMaker] = {
    "plain": KVCache,
    "capacity": lambda: KVCache(capacity_tokens=50),
    "batch": lambda: BatchKVCache([0, 3]),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def entries(tokens: int, seed: int = 0) -> tuple[mx.array, mx.array]:
    """Random keys and values `(B, K, L, D)`."""
    keys = mx.random.normal((2, B, K, tokens, D), key=mx.random.key(seed))
    return keys[0], keys[1]


def fill(cache: KVCache, keys: mx.array, values: mx.array, lengths: Iterable[int]) -> None:
    start = cache.size()
    for length in lengths:
        stop = start + length
        held = cache.update_and_fetch(keys[..., start:stop, :], values[..., start:stop, :])
        assert mx.array_equal(held[0], keys[..., :stop, :])
        assert mx.array_equal(held[1], values[..., :stop, :])
        start = stop


@kinds
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_returns_all_it_was_given(kind: str, lengths: list[int]) -> None:
    cache = KINDS[kind]()
    assert cache.empty()
    assert cache.size() == cache.nbytes == 0
    fill(cache, *entries(sum(lengths)), lengths)
    assert not cache.empty()
    assert cache.size() == sum(lengths)
    held_bytes = 2 * B * K * D * 4 * sum(lengths)
    assert held_bytes <= cache.nbytes <= 1.5 * held_bytes + 2 * B * K * D * 4 * 256


@kinds
@given(first=st.integers(1, 400), forget=st.integers(0, 500), again=st.integers(1, 300))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_trim_then_redo(kind: str, first: int, forget: int, again: int) -> None:
    cache, (keys, values) = KINDS[kind](), entries(first + again)
    fill(cache, *entries(first + again, seed=1), [first])
    assert cache.is_trimmable()
    forgotten = cache.trim(forget)
    assert forgotten == min(first, forget)
    assert cache.size() == first - forgotten
    cache.trim(first)
    fill(cache, keys, values, [first, again])


@kinds
@given(first=st.integers(1, 300), more=st.integers(1, 300))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_state_round_trip(kind: str, first: int, more: int) -> None:
    cache, (keys, values) = KINDS[kind](), entries(first + more)
    fill(cache, keys, values, [first])
    twin, other = type(cache).from_state(cache.state), KINDS[kind]()
    other.state = cache.state
    for copy in (twin, other):
        assert mx.array_equal(mx.array(copy.offset), mx.array(cache.offset))
        fill(copy, keys, values, [more])
    assert cache.size() == first  # a copy that goes on leaves the original alone


def test_positions_count_from_the_first_real_token() -> None:
    plain, batch = KVCache(), BatchKVCache([0, 3])
    assert plain.offset == 0
    assert batch.offset.tolist() == [0, -3]
    for cache in (plain, batch):
        cache.update_and_fetch(*entries(5))
    assert plain.offset == 5
    assert batch.offset.tolist() == [5, 2]
    for cache in (plain, batch):
        cache.trim(1)
    assert plain.offset == 4
    assert batch.offset.tolist() == [4, 1]


@kinds
def test_growth_is_geometric(kind: str) -> None:
    cache, (keys, values) = KINDS[kind](), entries(1)
    sizes = []
    for _ in range(6000):
        cache.update_and_fetch(keys, values)
        sizes.append(cache.nbytes)
        mx.eval(cache.state)
    copied = [before for before, after in itertools.pairwise(sizes) if after != before]
    assert len(copied) <= 10  # log(6000 / 256) / log(1.5), and one or two for rounding
    assert sum(copied) <= 3 * sizes[-1]


@kinds
def test_a_step_writes_in_place(kind: str) -> None:
    cache = KINDS[kind]()
    mx.eval(cache.update_and_fetch(*entries(20_000)))
    one = entries(1)
    mx.eval(one, cache.update_and_fetch(*one), cache.state)
    mx.reset_peak_memory()
    before_bytes = mx.get_active_memory()
    for _ in range(10):
        mx.eval(cache.update_and_fetch(*one))
    assert mx.get_peak_memory() - before_bytes < cache.nbytes / 10


def test_capacity_is_allocated_once() -> None:
    cache = KVCache(capacity_tokens=3000)
    sizes = set()
    for _ in range(30):
        cache.update_and_fetch(*entries(100))
        sizes.add(cache.nbytes)
    assert len(sizes) == 1


@pytest.mark.parametrize("held", [0, 7])
@pytest.mark.parametrize("tokens", [1, 5])
def test_mask(held: int, tokens: int) -> None:
    cache = KVCache()
    if held:
        cache.update_and_fetch(*entries(held))
    assert cache.make_mask(tokens) == (None if tokens == 1 else "causal")
    for window in (None, 2):
        mask = cache.make_mask(5, return_array=True, window_size=window)
        assert isinstance(mask, mx.array)
        for query in range(held, held + 5):
            oldest = 0 if window is None else query - window + 1
            visible = [oldest <= key <= query for key in range(held + 5)]
            assert mask[query - held].tolist() == visible


def test_mask_of_padded_rows() -> None:
    cache = BatchKVCache([0, 3])
    cache.update_and_fetch(*entries(4))
    mask = cache.make_mask(2)
    assert mask.shape == (2, 1, 2, 6)
    for row, padding in enumerate((0, 3)):
        for query in (4, 5):
            visible = [padding <= key <= query for key in range(6)]
            assert mask[row, 0, query - 4].tolist() == visible
