"""The same logits however the tokens arrive: at once, in chunks, one by one, in padded rows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.compare import relative_error
from makers.folders import DIALECTS, FolderMaker

from glm_mlx.load import load_model
from glm_mlx.model.decoder import Decoder

LIMIT = 1e-5
TOKENS = 280  # past a growth of the cache
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "chatglm": {"dialect": "chatglm"},
    "glm": {"dialect": "glm"},
    "glm4": {"dialect": "glm4"},
    "glm4-yarn": {"dialect": "glm4", "yarn": YARN},
    "glm-tied-full-rotary": {"dialect": "glm", "tied": True, "partial_rotary_factor": 1.0},
    "glm4-4bit": {"dialect": "glm4", "quantize": {"bits": 4, "group_size": 64}},
}
Loader = Callable[[str], Decoder]


@pytest.fixture(scope="module")
def load(make_folder: FolderMaker) -> Loader:
    """Return the loaded decoder of a variant, the same one at each call."""
    return functools.cache(lambda variant: load_model(make_folder(**VARIANTS[variant]))[0])


def random_ids(rows: int, tokens: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, 352, (rows, tokens)))


def in_chunks(decoder: Decoder, ids: mx.array, cuts: Iterable[int], cache: Any) -> mx.array:
    """Return the logits of `ids`, passed through the cache in pieces that end at `cuts`."""
    edges = [0, *cuts, ids.shape[1]]
    chunks = [ids[:, a:b] for a, b in itertools.pairwise(edges) if a < b]
    return mx.concatenate([decoder(chunk, cache=cache) for chunk in chunks], axis=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_decode_equals_full_forward(variant: str, load: Loader) -> None:
    decoder, ids = load(variant), random_ids(2, TOKENS)
    one_by_one = in_chunks(decoder, ids, range(1, TOKENS), decoder.make_cache())
    assert relative_error(one_by_one, decoder(ids)) <= LIMIT


@pytest.mark.parametrize("variant", VARIANTS)
@given(cuts=st.lists(st.integers(1, TOKENS - 1), max_size=12).map(sorted))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_chunked_prefill_equals_one_shot(variant: str, load: Loader, cuts: list[int]) -> None:
    decoder, ids = load(variant), random_ids(1, TOKENS)
    assert (
        relative_error(in_chunks(decoder, ids, cuts, decoder.make_cache()), decoder(ids)) <= LIMIT
    )


@pytest.mark.parametrize("variant", VARIANTS)
@given(lengths=st.lists(st.integers(1, 90), min_size=2, max_size=5), chunk=st.integers(1, 90))
@settings(max_examples=5, deadline=None, derandomize=True)
def test_left_padded_rows_equal_single_rows(
    variant: str, load: Loader, lengths: list[int], chunk: int
) -> None:
    """Through prefill in chunks and six decode steps, whatever ids stand on the padding."""
    decoder, longest = load(variant), max(lengths)
    ids = random_ids(len(lengths), longest + 6)
    padding = [longest - length for length in lengths]
    cuts = [*range(chunk, longest, chunk), *range(longest, longest + 6)]
    together = in_chunks(decoder, ids, cuts, decoder.make_cache(left_padding=padding))
    for row, start in enumerate(padding):
        alone = decoder(ids[row : row + 1, start:])
        assert relative_error(together[row : row + 1, start:], alone) <= LIMIT


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_a_batch_do_not_see_each_other(variant: str, load: Loader) -> None:
    decoder, ids = load(variant), random_ids(3, 40)
    alone = mx.concatenate([decoder(ids[row : row + 1]) for row in range(3)])
    assert relative_error(decoder(ids), alone) <= LIMIT


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_does_not_see_the_next(variant: str, load: Loader) -> None:
    decoder, ids = load(variant), random_ids(1, 40)
    other = mx.concatenate([ids[:, :25], random_ids(1, 15, seed=1)], axis=1)
    assert relative_error(decoder(other)[:, :25], decoder(ids)[:, :25]) <= 1e-6
    assert relative_error(decoder(other)[:, 25:], decoder(ids)[:, 25:]) > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_head_of_backbone_is_the_whole(variant: str, load: Loader) -> None:
    decoder, ids = load(variant), random_ids(2, 30)
    last = decoder.head(decoder.model(ids)[:, -1:])
    assert relative_error(last, decoder(ids)[:, -1:]) <= LIMIT


def test_capacity_changes_nothing_but_memory(load: Loader) -> None:
    decoder, ids = load("glm4"), random_ids(1, 700)
    cache = decoder.make_cache(capacity_tokens=700)
    roomy = in_chunks(decoder, ids, (300, 600), cache)
    assert mx.array_equal(roomy, in_chunks(decoder, ids, (300, 600), decoder.make_cache()))


def test_chatglm_is_glm_under_other_names(load: Loader) -> None:
    ids = random_ids(1, 50)
    assert mx.array_equal(load("chatglm")(ids), load("glm")(ids))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_shards_and_spellings_change_nothing(dialect: str, make_folder: FolderMaker) -> None:
    ids = random_ids(1, 20)
    one, _ = load_model(make_folder(dialect, yarn=YARN))
    many, _ = load_model(make_folder(dialect, yarn=YARN, shards=3, spelling="parameters"))
    assert mx.array_equal(one(ids), many(ids))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_dtype_of_the_weights_is_kept(
    dialect: str, dtype: mx.Dtype, make_folder: FolderMaker
) -> None:
    decoder, _ = load_model(make_folder(dialect, dtype=dtype, yarn=YARN))
    cache = decoder.make_cache()
    exact, _ = load_model(make_folder(dialect, yarn=YARN))
    logits, ids = decoder(random_ids(1, 9), cache=cache), random_ids(1, 9)
    assert logits.dtype == cache[0].state[0].dtype == dtype
    assert relative_error(logits.astype(mx.float32), exact(ids)) <= 0.05


@pytest.mark.parametrize("rope", [{"rope_theta": 5e6}, {"rope_type": "yarn", **YARN}], ids=str)
@pytest.mark.parametrize("spelling", ["legacy", "parameters"])
def test_asked_for_equals_written_down(
    rope: dict[str, Any], spelling: str, make_folder: FolderMaker
) -> None:
    options: dict[str, Any] = {"yarn": YARN} if "factor" in rope else rope
    written, _ = load_model(make_folder("glm4", spelling=spelling, **options))
    asked, _ = load_model(make_folder("glm4", spelling=spelling), rope=rope)
    ids = random_ids(1, 120)
    assert mx.array_equal(asked(ids), written(ids))


def test_layers_and_caches_are_one_to_one(load: Loader) -> None:
    decoder = load("glm4")
    assert len(decoder.layers) == len(decoder.make_cache()) == decoder.config.num_layers == 2
