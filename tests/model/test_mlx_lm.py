"""Either project's tools on the other's model or cache, with the same ids coming out."""
# mypy: allow-untyped-calls

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from makers.compare import relative_error
from makers.folders import DIALECTS, FolderMaker
from mlx_lm.generate import generate_step
from mlx_lm.models import cache as their_cache
from mlx_lm.utils import load_model as their_load_model

from glm_mlx.load import load_model
from glm_mlx.model.decoder import Decoder
from glm_mlx.model.mlx_lm import mlx_lm_classes

FOUR_BITS = {"bits": 4, "group_size": 64}
FOLDERS: dict[str, dict[str, Any]] = {
    **{dialect: {"dialect": dialect} for dialect in DIALECTS},
    **{f"{dialect}-4bit": {"dialect": dialect, "quantize": FOUR_BITS} for dialect in DIALECTS},
    "glm-parameters": {"dialect": "glm", "spelling": "parameters", "rope_theta": 5e6},
    "glm4-nobias": {"dialect": "glm4", "bias": False},
    "glm4-silent-nobias": {
        "dialect": "glm4",
        "bias": False,
        "edit_config": lambda config: config.pop("attention_bias"),
    },
    "glm-tied": {"dialect": "glm", "tied": True, "partial_rotary_factor": 1.0},
}
PROMPT = np.random.default_rng(0).integers(0, 283, 50)
every_folder = pytest.mark.parametrize("name", FOLDERS)


def greedy(decoder: Decoder, prompt: Any, tokens: int) -> list[int]:
    """Our own model, our own cache, the plainest loop."""
    cache = decoder.make_cache()
    ids: list[int] = []
    logits = decoder(mx.array(prompt)[None], cache)
    for _ in range(tokens):
        ids += logits[:, -1].argmax(axis=-1).tolist()  # type: ignore[arg-type]
        logits = decoder(mx.array([ids[-1:]]), cache)
    return ids


@every_folder
def test_their_generate_drives_our_model(name: str, make_folder: FolderMaker) -> None:
    folder = make_folder(**FOLDERS[name])
    model, _ = their_load_model(folder, get_model_classes=mlx_lm_classes)
    steps = generate_step(mx.array(PROMPT), model, max_tokens=64, prefill_step_size=16)
    theirs = [int(token) for token, _ in steps]
    assert theirs == greedy(load_model(folder)[0], PROMPT, 64)


def test_their_text_generation(make_folder: FolderMaker) -> None:
    folder = make_folder("glm4", vocab_size=297)  # no rows beyond the tokenizer's
    model, config = their_load_model(folder, get_model_classes=mlx_lm_classes)
    tokenizer = mlx_lm.utils.load_tokenizer(folder, eos_token_ids=config["eos_token_id"])
    text = mlx_lm.generate(model, tokenizer, prompt="你好 hello", max_tokens=20)
    ids = greedy(load_model(folder)[0], tokenizer.encode("你好 hello"), 20)
    stops = [i for i, token in enumerate(ids) if token in config["eos_token_id"]]
    assert text == tokenizer.decode(ids[: min(stops, default=20)])


@pytest.mark.parametrize(
    "quantize",
    [
        None,
        *({"bits": bits, "group_size": 64} for bits in (2, 3, 4, 5, 6, 8)),
        {"bits": 4, "group_size": 32, "mode": "mxfp4"},
        {"bits": 4, "group_size": 16, "mode": "nvfp4"},
        {"bits": 8, "group_size": 32, "mode": "mxfp8"},
    ],
    ids=str,
)
@pytest.mark.parametrize("tokens", [1, 40])
def test_equal_to_their_glm4(
    quantize: dict[str, Any] | None, tokens: int, make_folder: FolderMaker
) -> None:
    folder = make_folder("glm4", quantize=quantize, rms_norm_eps=1e-2)
    ids = mx.array(PROMPT[:tokens])[None]
    theirs, _ = their_load_model(folder)
    assert relative_error(load_model(folder)[0](ids), theirs(ids)) <= 1e-5


@pytest.mark.parametrize("dialect", DIALECTS)
def test_our_model_takes_their_cache(dialect: str, make_folder: FolderMaker) -> None:
    decoder, _ = load_model(make_folder(dialect))
    ids = mx.array(PROMPT)[None]
    cache = [their_cache.KVCache() for _ in decoder.layers]
    chunks = [decoder(ids[:, :30], cache=cache), decoder(ids[:, 30:], cache=cache)]
    assert relative_error(mx.concatenate(chunks, axis=1), decoder(ids)) <= 1e-5


def test_our_model_takes_their_batch_cache(make_folder: FolderMaker) -> None:
    decoder, _ = load_model(make_folder("glm4"))
    ids = mx.array(PROMPT).reshape(2, 25)
    cache = [their_cache.BatchKVCache([0, 4]) for _ in decoder.layers]
    ours = decoder(ids, decoder.make_cache(left_padding=[0, 4]))
    assert mx.array_equal(decoder(ids, cache)[1, 4:], ours[1, 4:])


def test_their_model_takes_our_cache(make_folder: FolderMaker) -> None:
    folder = make_folder("glm4")
    theirs, _ = their_load_model(folder)
    ids = mx.array(PROMPT)[None]
    cache = load_model(folder)[0].make_cache()
    chunks = [theirs(ids[:, :30], cache=cache), theirs(ids[:, 30:], cache=cache)]
    assert relative_error(mx.concatenate(chunks, axis=1), theirs(ids)) <= 1e-5


@pytest.mark.parametrize("left_padding", [None, [0, 4]], ids=["plain", "batch"])
def test_their_prompt_cache_functions(
    left_padding: list[int] | None, make_folder: FolderMaker, tmp_path: Path
) -> None:
    """Save, load, trim and go on: each gives the logits of never having stopped."""
    decoder, _ = load_model(make_folder("glm4"))
    ids = mx.array(PROMPT).reshape(1 if left_padding is None else 2, -1)
    half = ids.shape[1] // 2
    cache = decoder.make_cache(left_padding=left_padding)
    decoder(ids[:, :half], cache)
    file = str(tmp_path / "prompt.safetensors")
    their_cache.save_prompt_cache(file, cache, {"model": "tiny"})
    expected = decoder(ids[:, half:], cache)

    loaded, metadata = their_cache.load_prompt_cache(file, return_metadata=True)
    assert metadata == {"model": "tiny"}
    assert mx.array_equal(decoder(ids[:, half:], loaded), expected)

    assert their_cache.can_trim_prompt_cache(cache)
    trimmed: Any = their_cache.trim_prompt_cache(cache, ids.shape[1] - half)
    assert trimmed == ids.shape[1] - half
    assert mx.array_equal(decoder(ids[:, half:], cache), expected)


@pytest.mark.parametrize("left_padding", [None, [0, 4]], ids=["plain", "batch"])
def test_our_cache_reads_their_state(
    left_padding: list[int] | None, make_folder: FolderMaker
) -> None:
    decoder, _ = load_model(make_folder("glm4"))
    ids = mx.array(PROMPT).reshape(1 if left_padding is None else 2, -1)
    theirs: list[Any] = [
        their_cache.KVCache() if left_padding is None else their_cache.BatchKVCache(left_padding)
        for _ in decoder.layers
    ]
    decoder(ids, theirs)
    kind = type(decoder.make_cache(left_padding=left_padding)[0])
    ours = [kind.from_state(cache.state) for cache in theirs]
    assert mx.array_equal(decoder(ids[:, :1], ours), decoder(ids[:, :1], theirs))


def test_made_by_their_make_prompt_cache(make_folder: FolderMaker) -> None:
    decoder, _ = load_model(make_folder("glm4"))
    made = their_cache.make_prompt_cache(decoder)
    assert [type(cache) for cache in made] == [type(cache) for cache in decoder.make_cache()]
