"""The decode loop: what it computes, when it stops, and what it leaves in the cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, cast

import mlx.core as mx
import pytest

from glm_mlx.errors import ContextLengthError, NumericError, OptionError
from glm_mlx.generate.engine import Event, Finished, Generation, Prefill, Token, Usage
from glm_mlx.generate.sampling import Sampling
from glm_mlx.model.decoder import Decoder

GREEDY = Sampling(temperature=0)


def lazy_ids(events: Iterable[Event]) -> Iterator[int]:
    return (event.id for event in events if isinstance(event, Token))


def ids(events: Iterable[Event]) -> list[int]:
    return list(lazy_ids(events))


def by_hand(decoder: Decoder, prompt: list[int], tokens: int) -> list[int]:
    """The greedy reply, each token from a full forward pass without a cache."""
    reply: list[int] = []
    for _ in range(tokens):
        reply.append(cast(int, decoder(mx.array([prompt + reply]))[0, -1].argmax().item()))
    return reply


PROMPT = [(7 * i) % 350 for i in range(50)]


@pytest.mark.parametrize("step", [1, 7, 49, 50, 512])
def test_reply_equals_full_forward_passes(decoder: Decoder, step: int) -> None:
    reply = Generation(decoder, PROMPT, GREEDY, max_tokens=12, prefill_step_size=step)
    assert ids(reply) == by_hand(decoder, PROMPT, 12)


def test_sampled_reply_depends_on_the_seed_alone(decoder: Decoder) -> None:
    def reply(seed: int | None, step: int = 512) -> Generation:
        sampling = Sampling(top_p=0.9, repetition_penalty=1.1, presence_penalty=0.5, seed=seed)
        return Generation(decoder, PROMPT, sampling, max_tokens=20, prefill_step_size=step)

    first = ids(reply(1))
    assert ids(reply(1, step=9)) == first
    assert ids(reply(2)) != first
    beside = zip(reply(1), reply(2), strict=True)  # both in flight, step by step
    assert ids(event for event, _ in beside) == first
    unseeded = reply(None)
    assert ids(unseeded) == ids(reply(unseeded.seed))


def test_events_in_order(scripted: Any) -> None:
    model = scripted.Model()
    reply = Generation(model, range(10), GREEDY, max_tokens=3, prefill_step_size=4)
    assert list(reply) == [
        Prefill(0, 10),
        Prefill(4, 10),
        Prefill(8, 10),
        Prefill(9, 10),
        Prefill(10, 10),
        Token(10),
        Token(11),
        Token(12),
        Finished("length"),
    ]
    assert reply.usage == Usage(prompt_tokens=10, completion_tokens=3, cached_tokens=0)


def test_nothing_is_computed_beyond_need(scripted: Any) -> None:
    model = scripted.Model()
    list(Generation(model, range(10), GREEDY, max_tokens=3, prefill_step_size=4))
    assert model.runs == [4, 4, 1, 1, 1, 1]  # the last token alone, no step after the last one
    assert model.logit_rows == [1, 1, 1]  # no logits but of last positions


def test_next_step_is_queued_before_a_token_is_read(scripted: Any) -> None:
    model = scripted.Model()
    for number, _ in enumerate(lazy_ids(Generation(model, [5], GREEDY, max_tokens=4)), start=1):
        assert len(model.runs) == min(number + 1, 4)


def test_stop_id_ends_the_reply_and_is_told(scripted: Any) -> None:
    model = scripted.Model()
    reply = Generation(model, [5], GREEDY, max_tokens=20, stop_ids={9, 30})
    *_, last = events = list(reply)
    assert ids(events) == [6, 7, 8]
    assert last == Finished("stop", 9)
    assert scripted.held_ids(reply.cache) == [5, 6, 7, 8]
    assert reply.usage.completion_tokens == 3


def test_stop_id_at_once(scripted: Any) -> None:
    reply = Generation(scripted.Model(), [5], GREEDY, stop_ids={6})
    assert list(reply)[-1] == Finished("stop", 6)
    assert scripted.held_ids(reply.cache) == [5]


@pytest.mark.parametrize("events_read", range(12))
def test_closing_leaves_prompt_and_reply_in_the_cache(events_read: int, scripted: Any) -> None:
    prompt = list(range(20, 30))
    reply = Generation(scripted.Model(), prompt, GREEDY, max_tokens=50, prefill_step_size=3)
    iterator = iter(reply)
    read = list(itertools.islice(iterator, events_read))
    iterator.close()
    done = max([event.done_tokens for event in read if isinstance(event, Prefill)], default=0)
    assert scripted.held_ids(reply.cache) == prompt[:done] + ids(read)


def test_last_token_of_a_cut_reply_is_not_run(scripted: Any) -> None:
    reply = Generation(scripted.Model(), [1, 2], GREEDY, max_tokens=3)
    for _ in range(2):  # iterated again, it is made again
        assert ids(reply) == [3, 4, 5]
        assert scripted.held_ids(reply.cache) == [1, 2, 3, 4]


def test_conversation_goes_on_from_the_cache(decoder: Decoder) -> None:
    first = Generation(decoder, PROMPT, GREEDY, max_tokens=8)
    history = PROMPT + ids(first) + [3, 1, 4]
    assert first.cache[0].offset == len(PROMPT) + 7
    second = Generation(decoder, history, GREEDY, max_tokens=8, cache=first.cache)
    events = list(second)
    assert events[0] == Prefill(len(PROMPT) + 7, len(history))
    assert second.usage.cached_tokens == len(PROMPT) + 7
    assert ids(events) == by_hand(decoder, history, 8)


@pytest.mark.parametrize("kept", [1, 9, 10])
def test_cache_may_hold_as_much_as_the_prompt_or_more(kept: int, scripted: Any) -> None:
    model = scripted.Model()
    first = Generation(model, range(10), GREEDY, max_tokens=5)
    list(first)
    second = Generation(model, range(kept), GREEDY, max_tokens=2, cache=first.cache)
    assert second.usage.cached_tokens == kept - 1
    assert ids(second) == [kept, kept + 1]
    assert scripted.held_ids(second.cache) == list(range(kept + 1))


def test_wide_nucleus_is_drawn_again_exactly(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(temperature=3.0, top_p=0.9, frequency_penalty=0.5, seed=4)

    def reply() -> tuple[list[int], int]:
        generation = Generation(decoder, PROMPT, sampling, max_tokens=25)
        return ids(generation), generation.cache[0].offset

    expected = reply()  # 352 ids are within the partial sort
    monkeypatch.setattr("glm_mlx.generate.sampling._WINDOW_TOKENS", 8)
    assert reply() == expected


def test_logits_that_are_not_finite_end_the_reply(scripted: Any) -> None:
    model = scripted.Model()
    model.table[7] = mx.nan
    reply = Generation(model, [5], GREEDY, max_tokens=20)
    events = lazy_ids(reply)
    assert list(itertools.islice(events, 2)) == [6, 7]
    with pytest.raises(NumericError):
        next(events)
    assert scripted.held_ids(reply.cache) == [5, 6, 7]


def test_context_is_filled_but_not_exceeded(scripted: Any) -> None:
    model = scripted.Model()
    prompt = [1] * 250
    assert len(ids(Generation(model, prompt, GREEDY))) == 6
    assert len(ids(Generation(model, prompt, GREEDY, max_tokens=6))) == 6
    with pytest.raises(ContextLengthError, match=r"250 prompt tokens plus 7 .* 256; lower .* 6"):
        Generation(model, prompt, GREEDY, max_tokens=7)
    for full in (256, 300):
        with pytest.raises(ContextLengthError, match="shorten the prompt") as caught:
            Generation(model, [1] * full, GREEDY)
        assert caught.value.field == "prompt"


@pytest.mark.parametrize("prompt", [[], [64], [-1], [1.0], [True], ["a"], "abc"])
def test_bad_prompts_are_refused(prompt: Any, scripted: Any) -> None:
    with pytest.raises(OptionError) as caught:
        Generation(scripted.Model(), prompt, GREEDY)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("name", ["max_tokens", "prefill_step_size"])
@pytest.mark.parametrize("value", [0, -5, 1.5, "3", True])
def test_bad_counts_are_refused(name: str, value: Any, scripted: Any) -> None:
    with pytest.raises(OptionError, match=name) as caught:
        Generation(scripted.Model(), [1], GREEDY, **{name: value})
    assert caught.value.field == name


def test_padding_of_the_embedding_is_never_generated(scripted: Any) -> None:
    model = scripted.Model(lambda id: 60)
    assert set(ids(Generation(model, [1], GREEDY, max_tokens=5, vocab_size=50))) <= set(range(50))
