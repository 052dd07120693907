"""Keys and values kept between decode steps, for one layer.

Speaks mlx-lm's cache protocol (offset, state, update_and_fetch, trim, make_mask), so either
project's tools can drive either project's cache. Knows nothing of attention itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import mlx.core as mx

_BLOCK_TOKENS = 256


class KVCache:
    """Keys and values ``(B, K, S, D)`` of one layer, in buffers that grow geometrically.

    A full buffer is replaced by one half as large again, so that filling it token by token copies
    each entry about twice in all, and the slack stays below half the content. A caller who knows
    the final length passes ``capacity_tokens`` and nothing is ever copied.
    """

    def __init__(self, capacity_tokens: int = 0) -> None:
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self._length = 0
        self._capacity_tokens = capacity_tokens

    @property
    def offset(self) -> Any:
        """The position of the next token: int here, ``(B,)`` for a left-padded batch."""
        return self._length

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append ``(B, K, L, D)`` keys and values; return all ``(B, K, S, D)`` held so far."""
        start, stop = self._length, self._length + keys.shape[2]
        if self.keys is None or self.values is None or stop > self.keys.shape[2]:
            wanted = max(stop, self._capacity_tokens, start + start // 2)
            capacity = -(-wanted // _BLOCK_TOKENS) * _BLOCK_TOKENS
            self.keys = _grown(self.keys, keys, start, capacity)
            self.values = _grown(self.values, values, start, capacity)
        self._length = stop
        self.keys[..., start:stop, :] = keys
        self.values[..., start:stop, :] = values
        return self.keys[..., :stop, :], self.values[..., :stop, :]

    @property
    def state(self) -> Any:
        """What a saved cache holds; also what to evaluate to have the cache computed."""
        return self.keys, self.values, self._length

    @state.setter
    def state(self, state: Any) -> None:
        self.keys, self.values, self._length = state
        self._capacity_tokens = 0

    @property
    def meta_state(self) -> str:
        """Nothing beyond `state`: older mlx-lm versions store it beside the arrays."""
        return ""

    @meta_state.setter
    def meta_state(self, value: str) -> None:
        if value:
            raise ValueError(f"a KV cache has no meta state; found {value!r}")

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """Rebuild a cache from `state`."""
        cache = cls.__new__(cls)
        cache.state = state
        return cache

    def is_trimmable(self) -> bool:
        """Always: the last tokens can be forgotten."""
        return True

    def trim(self, n: int) -> int:
        """Forget the last ``n`` tokens; return how many were there to forget."""
        n = min(n, self._length)
        self._length -= n
        return n

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask for the next ``N`` tokens: none for one, causal for more.

        As an array, if asked for: ``(N, S)`` boolean, true where a query may look.
        """
        if window_size is None and N == 1:
            return None
        if window_size is None and not return_array:
            return "causal"
        queries = mx.arange(self._length, self._length + N)[:, None]
        keys = mx.arange(self._length + N)[None]
        mask = keys <= queries
        return mask if window_size is None else mask & (queries < keys + window_size)

    def size(self) -> int:
        """Tokens held."""
        return self._length

    def empty(self) -> bool:
        """Whether nothing was ever stored."""
        return self.keys is None

    @property
    def nbytes(self) -> int:
        """Bytes allocated, slack included."""
        if self.keys is None or self.values is None:
            return 0
        return self.keys.nbytes + self.values.nbytes


class BatchKVCache(KVCache):
    """The same for rows of unequal length, padded on the left to one length.

    Row ``b`` begins with ``left_padding[b]`` tokens that nobody may look at; positions count from
    the first real token of each row.
    """

    def __init__(self, left_padding: Sequence[int], capacity_tokens: int = 0) -> None:
        super().__init__(capacity_tokens)
        self.left_padding = mx.array(list(left_padding))

    @property
    def offset(self) -> mx.array:
        return self._length - self.left_padding

    @property
    def state(self) -> Any:
        return self.keys, self.values, self.offset, self.left_padding, self._length

    @state.setter
    def state(self, state: Any) -> None:
        self.keys, self.values, _, self.left_padding, self._length = state
        self._capacity_tokens = 0

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """``(B, 1, N, S)`` boolean: causal, and blind to each row's padding."""
        queries = mx.arange(self._length, self._length + N)[:, None]
        keys = mx.arange(self._length + N)[None]
        mask = (keys <= queries) & (keys >= self.left_padding[:, None, None, None])
        return mask if window_size is None else mask & (queries < keys + window_size)


def _grown(old: mx.array | None, new: mx.array, length: int, capacity: int) -> mx.array:
    """A buffer of ``capacity`` tokens that begins with the first ``length`` of ``old``."""
    B, K, _, D = new.shape
    if old is None:
        return mx.zeros((B, K, capacity, D), new.dtype)
    rest = mx.zeros((B, K, capacity - length, D), old.dtype)
    return mx.concatenate([old[..., :length, :], rest], axis=2)
