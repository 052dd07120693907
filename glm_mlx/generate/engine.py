"""The decode loop: prompt ids in, new ids out, with one step always queued ahead of the reader.

Knows no text, no threads and no clock. One `Generation` is one reply; closing its iterator at any
event ends it, and the cache is then ready for what comes next in the conversation.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from glm_mlx.errors import ContextLengthError, OptionError
from glm_mlx.model.cache import KVCache
from glm_mlx.model.decoder import Decoder

from .sampling import Draw, Sampler, Sampling

# Long enough for full-speed matrix products, short enough to cancel or share a chip promptly.
PREFILL_STEP_SIZE = 512

# Freed buffers go back to the system this often; prefill does it after each chunk, without which
# long prompts were seen to hold tens of gigabytes.
_CLEAR_EVERY_TOKENS = 256

# Cache room allocated up front for a reply whose length nobody knows.
_ROOM_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply; ``cached_tokens`` of the prompt were in the cache already."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """``done_tokens`` of the prompt's ``total_tokens`` are in the cache."""

    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Token:
    """One id of the reply."""

    id: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event: a stop id, which is not part of the reply, or the length asked for."""

    reason: Literal["stop", "length"]
    stop_id: int | None = None


Event = Prefill | Token | Finished


@dataclass(frozen=True, slots=True)
class _Step:
    """What token ``number`` is drawn from, and the draw; all of it lazy.

    Attributes:
        logits: ``(V,)``.
        counts: occurrences of each id in the reply before this token, if penalties need them.
    """

    number: int
    logits: mx.array
    counts: mx.array | None
    draw: Draw


class Generation:
    """One reply of one model: iterate it for its events.

    Attributes:
        cache: what a next turn can go on from. Once the iterator has ended or was closed, it
            holds the prompt and the reply as far as they were run, and nothing else: after a
            reply cut at ``max_tokens`` the last token is missing, since nothing followed it.
    """

    def __init__(
        self,
        model: Decoder,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        stop_ids: Collection[int] = (),
        max_tokens: int | None = None,
        vocab_size: int | None = None,
        cache: list[KVCache] | None = None,
        prefill_step_size: int = PREFILL_STEP_SIZE,
    ) -> None:
        """Check the request; compute nothing yet.

        Args:
            stop_ids: ids that end the reply.
            max_tokens: longest reply; None fills the model's context.
            vocab_size: ids the tokenizer knows, where the embedding is padded beyond them.
            cache: one that holds a prefix of ``prompt_ids`` already; used and changed.
            prefill_step_size: prompt tokens computed between two events.

        Raises:
            ContextLengthError: prompt and reply do not fit the model's context.
            OptionError: an argument is out of range or of a wrong type; `field` names it.
        """
        config = model.config
        self._model = model
        self._prompt_ids = _checked_ids(prompt_ids, config.vocab_size)
        self._prefill_step_size = _positive("prefill_step_size", prefill_step_size)
        self._stop_ids = frozenset(stop_ids)
        self._max_tokens = _reply_tokens(
            len(self._prompt_ids), max_tokens, config.max_position_embeddings
        )
        self._sampler = Sampler(sampling, self._prompt_ids, vocab_size or config.vocab_size)
        self._completion_tokens = 0
        total = len(self._prompt_ids)
        self.cache = cache or model.make_cache(
            capacity_tokens=total + min(self._max_tokens, _ROOM_TOKENS)
        )
        # The logits of the last token are needed, so it is run even if it is in the cache.
        self._cached_tokens = min(self.cache[0].offset, total - 1)

    @property
    def seed(self) -> int:
        """The seed in use, drawn from the operating system if none was given."""
        return self._sampler.seed

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self._prompt_ids), self._completion_tokens, self._cached_tokens)

    def __iter__(self) -> Generator[Event, None, None]:
        try:
            step = yield from self._prefill()
            yield from self._decode(step)
        finally:
            self._trim_to(len(self._prompt_ids) + self._completion_tokens)

    def _prefill(self) -> Generator[Event, None, _Step]:
        """Run the prompt, evaluating no logits but the last token's; return the first step.

        The last token runs alone: of the others only keys and values are then asked for, which
        spares them the last layer's feed-forward.
        """
        total, done = len(self._prompt_ids), self._cached_tokens
        self._completion_tokens = 0
        self._trim_to(done)
        yield Prefill(done, total)
        while total - done > 1:
            stop = min(done + self._prefill_step_size, total - 1)
            self._model.model(mx.array([self._prompt_ids[done:stop]]), cache=self.cache)
            mx.eval([layer.state for layer in self.cache])
            mx.clear_cache()
            done = stop
            yield Prefill(done, total)
        return self._run(mx.array([self._prompt_ids[done:]]), 0, self._sampler.no_counts())

    def _decode(self, step: _Step) -> Generator[Event, None, None]:
        while True:
            ahead = self._after(step)
            token = step.draw.read()
            if token is None:  # the nucleus is wider than the partial sort: once more, in full
                self._trim_to(len(self._prompt_ids) + step.number)
                step = self._drawn(step.logits, step.number, step.counts, exact=True)
                continue
            if step.number % _CLEAR_EVERY_TOKENS == 0:
                mx.clear_cache()
            if step.number == 0:
                yield Prefill(len(self._prompt_ids), len(self._prompt_ids))
            if token in self._stop_ids:
                yield Finished("stop", token)
                return
            self._completion_tokens += 1
            yield Token(token)
            if ahead is None:
                yield Finished("length")
                return
            step = ahead

    def _after(self, step: _Step) -> _Step | None:
        """Queue the step that follows ``step``, whose token may not be known yet."""
        if step.number + 1 == self._max_tokens:
            return None
        token = step.draw.token
        return self._run(
            token.reshape(1, 1), step.number + 1, self._sampler.count(step.counts, token)
        )

    def _run(self, ids: mx.array, number: int, counts: mx.array | None) -> _Step:
        """Queue the model on ``ids (1, L)`` and the draw of token ``number`` after them."""
        hidden = self._model.model(ids, cache=self.cache)  # (1, L, E)
        logits = self._model.head(hidden[:, -1:])[0, -1]  # (V,)
        return self._drawn(logits, number, counts)

    def _drawn(
        self, logits: mx.array, number: int, counts: mx.array | None, *, exact: bool = False
    ) -> _Step:
        draw = self._sampler.draw(logits, number, counts, exact=exact)
        draw.queue()
        return _Step(number, logits, counts, draw)

    def _trim_to(self, tokens: int) -> None:
        """Forget what the cache holds beyond ``tokens``: a step queued ahead, or a longer past."""
        for layer in self.cache:
            layer.trim(max(0, layer.offset - tokens))


def _checked_ids(prompt_ids: Sequence[int], vocab_size: int) -> list[int]:
    ids = list(prompt_ids)
    if not ids:
        raise OptionError("the prompt is empty; give at least one token", field="prompt")
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise OptionError(
                f"the prompt holds {token!r}; token ids are integers from 0 to {vocab_size - 1}",
                field="prompt",
            )
    return ids


def _positive(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} is {value!r}; it must be an integer, 1 or more", field=name)
    return value


def _reply_tokens(prompt_tokens: int, max_tokens: int | None, context_tokens: int) -> int:
    """The longest reply that is both wanted and possible."""
    room = context_tokens - prompt_tokens
    wanted = 1 if max_tokens is None else _positive("max_tokens", max_tokens)
    if wanted <= room:
        return room if max_tokens is None else wanted
    advice = (
        f"lower max_tokens to {room} or shorten the prompt" if room > 0 else "shorten the prompt"
    )
    raise ContextLengthError(
        f"{prompt_tokens} prompt tokens plus {wanted} to generate exceed the model's context of "
        f"{context_tokens}; {advice}",
        field="max_tokens" if room > 0 else "prompt",
    )
