"""Ids to text as it becomes certain: stop strings, finish reason, usage, timings.

Knows neither the model nor how a token becomes text: a `Generation` gives the ids, a detokenizer
their text. The one-shot text is the stream's pieces joined, so the two cannot differ.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, Protocol

from glm_mlx.errors import OptionError

from .engine import Finished, Generation, Prefill, Token, Usage

_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256

FinishReason = Literal["stop", "length", "cancelled"]


class Detokenizer(Protocol):
    """Turns ids into text, holding back what a later id may still change."""

    def push(self, id: int, /) -> str: ...

    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock time of one reply.

    Attributes:
        prefill_tokens: prompt tokens computed, those in the cache left out.
        prefill_seconds: until the first token of the reply was known.
        decode_tokens: tokens of the reply after the first.
        decode_seconds: from the first to the end.
    """

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a reply; the fields from ``finish_reason`` on are set in the last one alone.

    Attributes:
        text: what became certain with this chunk, possibly nothing.
        token_ids: the ids that came with it; their text may follow in later chunks.
        finish_reason: a stop id or stop string, the length asked for, or a cancel.
        stop_id: the id that ended the reply; it is not part of it.
        stop_string: the string that did; the text ends before it, though its ids were counted.
        seed: gives the same reply again.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    stop_id: int | None = None
    stop_string: str | None = None
    seed: int | None = None


def checked_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return stop strings as a tuple.

    Raises:
        OptionError: they are too many, empty, too long or not text.
    """
    stops = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(stops, Sequence):
        raise _stop_error(f"is {stop!r}; it must be a string or a list of strings")
    if len(stops) > _MAX_STOPS:
        raise _stop_error(f"has {len(stops)} strings; at most {_MAX_STOPS} are possible")
    for text in stops:
        if not isinstance(text, str):
            raise _stop_error(f"holds {text!r}; each must be a string")
        if not 1 <= len(text) <= _MAX_STOP_CHARACTERS:
            raise _stop_error(
                f"holds a string of {len(text)} characters; each must have 1 to "
                f"{_MAX_STOP_CHARACTERS}"
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise _stop_error(f"holds {text!r}; half a surrogate pair is not text")
    return tuple(stops)


def _stop_error(found: str) -> OptionError:
    return OptionError(f"stop {found}", field="stop")


class StopScanner:
    """Finds the first stop string to be complete in a text that arrives in pieces.

    What may be the beginning of one is held back, so nothing of it is ever given out. Of several
    complete at the same character the longest is meant.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take more text; return what surely precedes any stop string."""
        if self.found is not None:
            return ""
        text = self._held + text
        hits = [(start + len(s), start, s) for s in self._stops if (start := text.find(s)) >= 0]
        if hits:
            _, start, self.found = min(hits)
            self._held = ""
            return text[:start]
        cut = len(text) - max((_overlap(text, s) for s in self._stops), default=0)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """Return what was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def stream_text(
    generation: Generation,
    detokenizer: Detokenizer,
    *,
    stops: Sequence[str] = (),
    cancel: threading.Event | None = None,
    on_prefill: Callable[[int, int], object] | None = None,
) -> Generator[Chunk | None, None, None]:
    """Yield the reply as chunks, the last with a finish reason; None is a turn without one.

    Args:
        stops: strings that end the reply, from `checked_stops`.
        cancel: once set, the reply ends after the token or prefill chunk being computed.
        on_prefill: told ``(done_tokens, total_tokens)`` of the prompt; what it raises ends the
            reply and comes out here.
    """
    scanner = StopScanner(stops)
    reason: FinishReason = "cancelled"
    stop_id: int | None = None
    first_token: float | None = None
    done_tokens = 0
    started = time.perf_counter()
    with closing(iter(generation)) as events:
        while scanner.found is None and not (cancel is not None and cancel.is_set()):
            match next(events):
                case Prefill(done_tokens, total_tokens):
                    if on_prefill is not None:
                        on_prefill(done_tokens, total_tokens)
                    yield None
                case Token(token):
                    first_token = first_token or time.perf_counter()
                    yield Chunk(scanner.push(detokenizer.push(token)), (token,))
                case Finished(reason, stop_id):
                    break
    text = scanner.push(detokenizer.finish()) + scanner.finish()
    usage, ended = generation.usage, time.perf_counter()
    first_token = first_token or ended
    yield Chunk(
        text,
        finish_reason="stop" if scanner.found is not None else reason,
        usage=usage,
        timings=Timings(
            prefill_tokens=max(0, done_tokens - usage.cached_tokens),
            prefill_seconds=first_token - started,
            decode_tokens=max(0, usage.completion_tokens - 1),
            decode_seconds=ended - first_token,
        ),
        stop_id=stop_id,
        stop_string=scanner.found,
        seed=generation.seed,
    )
