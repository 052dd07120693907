"""The embedded model: its files, its vocabulary in GLM's construction, and what it answers."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_mlx.config import read_config
from glm_mlx.text.bytelevel import to_bytes
from glm_mlx.text.ranks import PATTERN, SPECIAL_TOKENS
from glm_mlx.text.tokenizer import Tokenizer

NANO = Path(str(files("glm_mlx.nano")))
DATA = ("*.json", "*.jinja", "*.safetensors", "*.md")


def read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((NANO / name).read_text(encoding="utf-8"))
    return data


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = read_config(NANO)
    return Tokenizer.from_folder(NANO, vocab_size=config.vocab_size, family=config.family)


def test_all_data_files_together_stay_within_three_megabytes() -> None:
    assert sum(file.stat().st_size for kind in DATA for file in NANO.glob(kind)) <= 3_000_000


def test_config_is_of_the_0414_kind_and_has_the_flat_keys_that_mlx_lm_needs() -> None:
    config = read_config(NANO)
    assert (config.family, config.num_kv_heads, config.head_dim) == ("glm4", 2, 64)
    assert (config.rotary_dim, config.rms_norm_eps) == (32, 1e-5)
    assert (config.attention_bias, config.tie_word_embeddings) == (True, False)
    assert {"partial_rotary_factor", "rope_theta"} <= read("config.json").keys()


def test_tensors_are_8_bit_matrices_between_fp32_norms() -> None:
    tensors = mx.load(str(NANO / "model.safetensors"))
    assert isinstance(tensors, dict)
    for name, tensor in tensors.items():
        packed = name.endswith(".weight") and f"{name.removesuffix('weight')}scales" in tensors
        assert tensor.dtype == (mx.uint32 if packed else mx.float32), name
        assert packed or bool(mx.isfinite(tensor).all()), name
    layer = {name for name in tensors if name.startswith("model.layers.0.")}
    assert {f"model.layers.0.post_{part}_layernorm.weight" for part in ("self_attn", "mlp")} < layer


def test_stop_ids_are_the_same_in_every_file(tokenizer: Tokenizer) -> None:
    assert set(read("config.json")["eos_token_id"]) == tokenizer.stop_ids
    assert set(read("generation_config.json")["eos_token_id"]) == tokenizer.stop_ids
    assert read("generation_config.json")["do_sample"] is False


def test_chat_template_is_ours_of_the_0414_models() -> None:
    ours = files("glm_mlx.text") / "templates" / "glm4_0414.jinja"
    assert (NANO / "chat_template.jinja").read_bytes() == ours.read_bytes()


def test_card_says_what_it_is_for_and_how_it_was_made() -> None:
    card = (NANO / "README.md").read_text(encoding="utf-8")
    for words in ("exists to try the commands", "examples/train_nano/train.py", "torch", "seed"):
        assert words in card


def test_vocabulary_has_all_bytes_first_and_the_specials_of_glm_last(tokenizer: Tokenizer) -> None:
    model = read("tokenizer.json")["model"]
    ranks = sorted(model["vocab"], key=model["vocab"].__getitem__)
    assert {to_bytes(token) for token in ranks[:256]} == {bytes([byte]) for byte in range(256)}
    assert tokenizer.special_ids == {s: len(ranks) + i for i, s in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.vocab_size < read_config(NANO).vocab_size  # padding rows, as published ones
    assert not any(digit in token for token in ranks[256:] for digit in "0123456789")


def test_prefix_stands_before_text_and_is_not_doubled_in_chats(tokenizer: Tokenizer) -> None:
    prefix = [tokenizer.special_ids[text] for text in ("[gMASK]", "<sop>")]
    assert tokenizer.encode("Hello")[:2] == prefix
    chat = tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
    assert chat[:2] == prefix
    assert chat.count(prefix[0]) == 1


@cache
def tiktoken_twin() -> tiktoken.Encoding:
    vocabulary = read("tokenizer.json")["model"]["vocab"]
    ranks = {to_bytes(token): rank for token, rank in vocabulary.items()}
    return tiktoken.Encoding("nano", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text("ab eht12 \n，你好的"))
def test_vocabulary_encodes_as_tiktoken_does_from_its_ranks(text: str) -> None:
    config = read_config(NANO)
    tokenizer = Tokenizer.from_folder(NANO, vocab_size=config.vocab_size, family=config.family)
    ids = tokenizer.encode(text, prefix=False, parse_special=False)
    assert ids == tiktoken_twin().encode_ordinary(text)
