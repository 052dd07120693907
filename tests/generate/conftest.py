"""For the generate room: a scripted model that shows what it was given, a real one, an owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from makers.folders import FolderMaker

from glm_mlx.generate.owner import Owner
from glm_mlx.load import load_model
from glm_mlx.model.cache import KVCache
from glm_mlx.model.decoder import Decoder

VOCAB = 64


class ScriptedModel:
    """Follows token t by `follow(t)`, far above all others; its cache keeps the ids themselves.

    Attributes:
        runs: the number of tokens of each call, in order.
        logit_rows: rows handed to the head, in order.
    """

    def __init__(self, follow: Callable[[int], int] = lambda id: (id + 1) % VOCAB) -> None:
        self.config = SimpleNamespace(vocab_size=VOCAB, max_position_embeddings=256)
        self.table = mx.array(np.eye(VOCAB, dtype=np.float32)[[follow(i) for i in range(VOCAB)]])
        self.runs: list[int] = []
        self.logit_rows: list[int] = []

    def make_cache(self, capacity_tokens: int = 0) -> list[KVCache]:
        return [KVCache(capacity_tokens)]

    def model(self, ids: mx.array, cache: list[KVCache]) -> mx.array:
        self.runs.append(ids.shape[1])
        cache[0].update_and_fetch(*[ids[:, None, :, None].astype(mx.float32)] * 2)
        return ids[..., None]

    def head(self, hidden: mx.array) -> mx.array:
        self.logit_rows.append(hidden.shape[1])
        return self.table[hidden[..., 0]] * 9


def held_ids(cache: list[KVCache]) -> list[int]:
    """The ids in a scripted model's cache."""
    length = cache[0].offset
    return [] if cache[0].keys is None else cache[0].keys[0, 0, :length, 0].tolist()  # type: ignore[return-value]


@pytest.fixture
def owner() -> Iterator[Owner]:
    one = Owner()
    yield one
    one.close()


@pytest.fixture
def scripted() -> Any:
    """The class and its reader: `scripted.Model(follow)`, `scripted.held_ids(cache)`."""
    return SimpleNamespace(Model=ScriptedModel, held_ids=held_ids, vocab_size=VOCAB)


@pytest.fixture(scope="session")
def decoder(make_folder: FolderMaker) -> Decoder:
    """A seeded two-layer glm4 of 352 ids."""
    return load_model(make_folder("glm4"))[0]
