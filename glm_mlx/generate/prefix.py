"""A conversation's keys and values between its turns, so that each turn computes only its own.

Knows token ids; whose conversation it is, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import takewhile

from glm_mlx.errors import OptionError
from glm_mlx.model.cache import KVCache
from glm_mlx.model.decoder import Decoder


class PromptCache:
    """What one model computed for one conversation; empty at first.

    Give it to each request of the conversation. Whatever prefix the new prompt shares with the
    last one and its reply is not computed again; a prompt that shares nothing starts over.
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._ids: list[int] = []
        self._layers: list[KVCache] = []
        self._in_use = False

    def __len__(self) -> int:
        """Tokens held."""
        return len(self._ids)

    @contextmanager
    def lend(self, model: Decoder, prompt_ids: Sequence[int]) -> Generator[_Loan, None, None]:
        """Hand out the layers, holding no more than a prefix of ``prompt_ids``, for one reply.

        Raises:
            OptionError: the cache is another model's, or another request is using it.
        """
        if model is not self._model:
            raise OptionError("this cache belongs to another model", field="cache")
        if self._in_use:
            raise OptionError(
                "this cache is in use by another request; give each conversation its own",
                field="cache",
            )
        pairs = zip(self._ids, prompt_ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._layers = self._layers or model.make_cache()
        for layer in self._layers:
            layer.trim(layer.offset - shared)
        loan = _Loan(self._layers, list(prompt_ids))
        self._in_use = True
        try:
            yield loan
        finally:
            self._ids = loan.ids[: self._layers[0].offset]
            self._in_use = False


class _Loan:
    """The layers while a reply is made, and the ids that go into them."""

    def __init__(self, layers: list[KVCache], ids: list[int]) -> None:
        self.layers = layers
        self.ids = ids  # the prompt's; the borrower appends the reply's
