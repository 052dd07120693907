"""Fixtures every ring shares. The makers behind them live in `tests/makers` so that the plain
scripts of `tests/bench` build the same folders."""

from __future__ import annotations

import sys
from pathlib import Path

import hypothesis
import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from makers.folders import FolderMaker, write_folder
from makers.vocabulary import make_tokenizer
from tokenizers import Tokenizer

# On a Mac too: the tolerances are those of fp32. The metal ring chooses its device itself.
mx.set_default_device(mx.cpu)


# A shared machine stalls now and then; the same examples each run, so that red means a change.
hypothesis.settings.register_profile("ring", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ring")


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> FolderMaker:
    """Return `make_folder(dialect="glm4", **options) -> Path`: a new folder at each call.

    Options are those of `makers.folders.write_folder`: spelling, shards, quantize, overrides,
    dtype, seed, edit_config, edit_tensors, and the fields of `makers.folders.Shape`.
    """

    def make(dialect: str = "glm4", **options: object) -> Path:
        return write_folder(tmp_path_factory.mktemp(dialect), dialect, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def fast_tokenizer() -> Tokenizer:
    """The `tokenizers` twin of the vocabulary in every made folder."""
    return make_tokenizer()
