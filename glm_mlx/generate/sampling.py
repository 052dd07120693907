"""Logits of one position to one token id, in the order Hugging Face users know.

Logit bias, penalties, temperature, top-k, top-p, min-p. Each of the three filters is a floor under
the logits, so none needs the whole vocabulary sorted. Knows one request; no model and no text.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple, cast

import mlx.core as mx

from glm_mlx.errors import NumericError, OptionError

# A chat model's nucleus is a handful of tokens. On the CPU the largest 1,024 of 151,552 logits
# cost 0.9 ms to find where a full sort costs 12 ms.
_WINDOW_TOKENS = 1024

_ABOVE_ZERO = 5e-324
_RANGES: dict[str, tuple[type, float, float, str]] = {
    "temperature": (float, 0, sys.float_info.max, "a finite number, 0 or more"),
    "top_p": (float, _ABOVE_ZERO, 1, "a number above 0, at most 1"),
    "top_k": (int, 0, math.inf, "an integer, 0 (off) or more"),
    "min_p": (float, 0, 1, "a number from 0 to 1"),
    "repetition_penalty": (float, 0.01, 100, "a number from 0.01 to 100"),
    "presence_penalty": (float, -2, 2, "a number from -2 to 2"),
    "frequency_penalty": (float, -2, 2, "a number from -2 to 2"),
    "seed": (int, -(2**63), 2**64 - 1, "an integer of 64 bits, or None"),
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to pick a token; the defaults draw from the model's own distribution.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: keep the smallest set of likeliest tokens that holds this much probability.
        top_k: keep this many likeliest tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest.
        repetition_penalty: weakens every token of the prompt and the reply (arXiv 1909.05858).
        presence_penalty: subtracted once from tokens of the reply, as OpenAI defines it.
        frequency_penalty: subtracted for each time a token stands in the reply.
        logit_bias: token id -> what to add to its logit.
        seed: of all random draws; None draws one from the operating system.

    Raises:
        OptionError: a value is out of range or of a wrong type; `field` names it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, low, high, expected) in _RANGES.items():
            value = _plain(getattr(self, name))
            if name == "seed" and value is None:
                continue
            if not (_is_number(value, kind) and low <= value <= high):
                raise OptionError(f"{name} is {value!r}; it must be {expected}", field=name)
            object.__setattr__(self, name, kind(value))
        if not isinstance(self.logit_bias, Mapping):
            raise OptionError(
                f"logit_bias is a {type(self.logit_bias).__name__}; "
                "it must map token ids to numbers",
                field="logit_bias",
            )
        for token, bias in self.logit_bias.items():
            bias = _plain(bias)
            if not (_is_number(token, int) and _is_number(bias, float) and abs(bias) <= 1e9):
                raise OptionError(
                    f"logit_bias holds {token!r}: {bias!r}; "
                    "it must map integer token ids to numbers from -1e9 to 1e9",
                    field="logit_bias",
                )
        biases = {int(token): float(bias) for token, bias in self.logit_bias.items()}
        object.__setattr__(self, "logit_bias", biases)


def _plain(value: Any) -> Any:
    """A NumPy scalar as the Python number it holds; anything else as it is."""
    return value.item() if isinstance(value, Real) and hasattr(value, "item") else value


def _is_number(value: object, kind: type) -> bool:
    """Whether it is a number of Python's or NumPy's; a boolean is none."""
    return isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)


class Draw(NamedTuple):
    """A token on its way: lazy scalars, so that the next step can be built on it unread.

    Attributes:
        token: the id drawn.
        finite: whether the logits it was drawn from were.
        covered: whether the nucleus lay within the partial sort; None where it surely did.
    """

    token: mx.array
    finite: mx.array
    covered: mx.array | None

    def queue(self) -> None:
        """Start computing in the background."""
        mx.async_eval(*(part for part in self if part is not None))

    def read(self) -> int | None:
        """Wait for the id; None where it has to be drawn again, exactly.

        Raises:
            NumericError: the likeliest token's logit was NaN or infinite.
        """
        if not self.finite.item():
            raise NumericError(
                "the model computed logits that are NaN or infinite",
                hint="the weights or an adapter are damaged, or overflow their dtype",
            )
        if self.covered is not None and not self.covered.item():
            return None
        return cast(int, self.token.item())


class Sampler:
    """Draws the tokens of one request, one row of logits at a time.

    Step n depends on the seed, n and the logits alone, so the same seed gives the same text in any
    thread and beside any other request.

    Attributes:
        seed: the one asked for, else one from the operating system that survives JSON.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], vocab_size: int) -> None:
        """Prepare for one request.

        Args:
            prompt_ids: what a repetition penalty looks back on, besides the reply.
            vocab_size: ids the tokenizer knows; padding rows of the head beyond it are cut off.

        Raises:
            OptionError: ``logit_bias`` holds an id outside the vocabulary.
        """
        self.sampling = sampling
        self.vocab_size = vocab_size
        self.seed = secrets.randbits(53) if sampling.seed is None else sampling.seed
        for token in sampling.logit_bias:
            if not 0 <= token < vocab_size:
                raise OptionError(
                    f"logit_bias holds token id {token}; the vocabulary ends at {vocab_size - 1}",
                    field="logit_bias",
                )
        self._bias_ids = mx.array(list(sampling.logit_bias), mx.int32)
        self._biases = mx.array(list(sampling.logit_bias.values()), mx.float32)
        self._in_prompt: mx.array | None = None
        if sampling.repetition_penalty != 1:
            known = mx.array([token for token in set(prompt_ids) if token < vocab_size], mx.int32)
            self._in_prompt = mx.zeros((vocab_size,), mx.bool_).at[known].add(True)
        # Beyond these bounds nothing changes, save that float32 would round to 0 or infinity.
        self._temperature = min(max(sampling.temperature, 1e-30), 1e30)

    def no_counts(self) -> mx.array | None:
        """Occurrences of each id in an empty reply ``(V,)``; None where no penalty asks."""
        s = self.sampling
        if s.repetition_penalty == 1 and s.presence_penalty == s.frequency_penalty == 0:
            return None
        return mx.zeros((self.vocab_size,), mx.int32)

    def count(self, counts: mx.array | None, token: mx.array) -> mx.array | None:
        """Occurrences once ``token`` is in the reply too; lazy like the token."""
        return None if counts is None else counts.at[token].add(1)

    def draw(
        self, logits: mx.array, step: int, counts: mx.array | None = None, *, exact: bool = False
    ) -> Draw:
        """Draw token ``step`` of the reply from its logits ``(V,)``; nothing is computed yet.

        Args:
            counts: occurrences of each id in the reply so far, from `count`.
            exact: sort the whole vocabulary, where a first draw turned out not to be covered.
        """
        x = self.adjusted(logits, counts)
        highest = mx.max(x)  # NaN if any is
        finite = mx.isfinite(highest)
        if self.sampling.temperature == 0:
            return Draw(mx.argmax(x), finite, None)
        x, covered = self.warped(x - highest, exact=exact)
        key = mx.random.key(_mixed(self.seed, step))
        return Draw(mx.random.categorical(x, key=key), finite, covered)

    def adjusted(self, logits: mx.array, counts: mx.array | None = None) -> mx.array:
        """Logits in float32 after bias and penalties, the latter in vLLM's order."""
        s = self.sampling
        x = logits[: self.vocab_size].astype(mx.float32)
        if s.logit_bias:
            x = x.at[self._bias_ids].add(self._biases)
        if counts is None:
            return x
        if self._in_prompt is not None:
            r = s.repetition_penalty
            x = mx.where(self._in_prompt | (counts > 0), mx.where(x < 0, x * r, x / r), x)
        return x - s.frequency_penalty * counts - s.presence_penalty * (counts > 0)

    def warped(self, x: mx.array, *, exact: bool = False) -> tuple[mx.array, mx.array | None]:
        """Logits after temperature and filters, -inf where out; and whether that is final.

        The second is None where it surely is, else a lazy boolean: false asks for ``exact``.
        ``x`` has its maximum at 0, so that no temperature overflows.
        """
        x = x / self._temperature
        floor, covered = self._floor(x, exact)
        return (x if floor is None else mx.where(x >= floor, x, -mx.inf)), covered

    def _floor(self, x: mx.array, exact: bool) -> tuple[mx.array | None, mx.array | None]:
        """The logit below which a token is out, and whether the partial sort sufficed to tell.

        A token is in the nucleus if those likelier than it hold less than ``top_p``. Tokens as
        likely as the last one in are in too: which of them a sort puts first is no reason.
        """
        s = self.sampling
        floor = covered = None
        top_k = s.top_k if s.top_k < self.vocab_size else 0
        if top_k or s.top_p < 1:
            window = top_k or (self.vocab_size if exact else min(_WINDOW_TOKENS, self.vocab_size))
            likeliest = mx.sort(mx.topk(x, window))[::-1]
            floor = likeliest[-1]
        if floor is not None and s.top_p < 1:
            kept = mx.where(x >= floor, x, -mx.inf) if top_k else x
            mass = mx.exp(likeliest - mx.logsumexp(kept))
            above = mx.cumsum(mass, inclusive=False)
            floor = mx.min(mx.where(above < max(s.top_p, 1e-30), likeliest, mx.inf))
            if window < self.vocab_size and not top_k:
                covered = above[-1] + mass[-1] >= s.top_p
        if s.min_p > 0:
            least = mx.array(math.log(s.min_p))
            floor = least if floor is None else mx.maximum(floor, least)
        return floor, covered


def _mixed(seed: int, step: int) -> int:
    """The 64 bits SplitMix64 (Steele, Lea, Flood 2014) yields from ``seed`` at ``step``."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)
