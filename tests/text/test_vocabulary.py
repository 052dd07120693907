"""Tokenizer files: both kinds give one vocabulary, and each kind of damage is named."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.vocabulary import SPECIALS, make_ranks, special_ids, write_tokenizer

from glm_mlx.errors import TokenizerError
from glm_mlx.text import Tokenizer

Edit = Callable[[dict[str, Any]], object]
SIZE = len(make_ranks()) + len(SPECIALS)


def open_tokenizer(folder: Path, vocab_size: int = 352) -> Tokenizer:
    return Tokenizer.from_folder(folder, vocab_size=vocab_size, family="chatglm")


@pytest.fixture(scope="module")
def from_ranks(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("ranks")
    write_tokenizer(folder, "chatglm", "")
    return open_tokenizer(folder)


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from([*SPECIALS, "hello", "你好", "\n"])).map("".join))
def test_ranks_equal_the_fast_file(
    from_ranks: Tokenizer, fast_tokenizer: tokenizers.Tokenizer, text: str
) -> None:
    ids = fast_tokenizer.encode(text, add_special_tokens=False).ids
    assert from_ranks.encode(text, prefix=False) == ids
    if not text.startswith("[gMASK]<sop>"):
        assert from_ranks.encode(text) == fast_tokenizer.encode(text).ids


def test_ranks_without_a_config_get_glm_s_special_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "chatglm", "")
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = open_tokenizer(tmp_path)
    assert dict(tokenizer.special_ids) == special_ids()
    assert tokenizer.vocab_size == SIZE


def test_added_tokens_of_the_config_join_those_of_the_file(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "glm4", "")
    config = tmp_path / "tokenizer_config.json"
    added = {str(SIZE): {"content": "<|more|>", "special": True}}
    config.write_text("\ufeff" + json.dumps({"added_tokens_decoder": added}), encoding="utf-8")
    tokenizer = open_tokenizer(tmp_path)
    assert dict(tokenizer.special_ids) == special_ids() | {"<|more|>": SIZE}
    assert tokenizer.encode("<|more|>", prefix=False) == [SIZE]


WORDS = ["<think>", "</think>", "</think>\n", "你好吗", "<|user|>!"]


@pytest.fixture(scope="module")
def with_words(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A folder with added tokens that are not special, and the same in the oracle."""
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder, "glm4", "")
    oracle = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    oracle.add_tokens(WORDS)
    oracle.save(str(folder / "tokenizer.json"))
    return open_tokenizer(folder), oracle


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SPECIALS, *WORDS, "<", "!", "\n"]) | st.text()).map("".join))
def test_words_among_the_added_tokens_equal_the_fast_file(
    with_words: tuple[Tokenizer, tokenizers.Tokenizer], text: str
) -> None:
    ours, theirs = with_words
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, prefix=False) == ids
    assert ours.decode(ids) == theirs.decode(ids)


def test_special_tokens_among_the_trained_ones_stay_out_of_plain_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "glm4", "")
    edit_json(tmp_path, lambda data: data["model"]["vocab"].update(special_ids()))
    edit_json(tmp_path, lambda data: data.update(pre_tokenizer=BYTES_ONLY))
    tokenizer = open_tokenizer(tmp_path)
    for token, index in special_ids().items():
        assert tokenizer.encode(token, prefix=False) == [index]
        assert index not in tokenizer.encode(token, parse_special=False, prefix=False)


def test_merges_in_the_older_spelling(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "glm4", "")
    expected = open_tokenizer(tmp_path).encode("hello 你好 123")
    edit_json(
        tmp_path,
        lambda data: data["model"].update(merges=[" ".join(m) for m in data["model"]["merges"]]),
    )
    assert open_tokenizer(tmp_path).encode("hello 你好 123") == expected


BYTES_ONLY = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
TOKEN = {"id": 400, "content": "<|new|>", "special": True}


def edit_json(folder: Path, edit: Edit) -> None:
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    edit(data)
    file.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.pop("model"), "its model is not a BPE"),
        (lambda d: d["model"].update(type="Unigram"), "its model is not a BPE"),
        (lambda d: d["model"].update(vocab=[]), "its model is not a BPE"),
        (lambda d: d["model"].update(byte_fallback=True), "model.byte_fallback is set"),
        (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix is set"),
        (lambda d: d["model"]["vocab"].update({"hello": -1}), "not a whole number"),
        (lambda d: d["model"]["vocab"].update({"hello": 1.5}), "not a whole number"),
        (lambda d: d["model"]["vocab"].update({"hello": 3}), "gives two tokens one id"),
        (lambda d: d["model"]["vocab"].update({"▁the": 340}), "not byte-level: they hold '▁'"),
        (lambda d: d["model"]["vocab"].pop("!"), "lacks 1 of the 256 single-byte tokens"),
        (lambda d: d["model"]["merges"].append(["h", "nope"]), "cannot be used"),
        (lambda d: d["model"]["merges"].append(5), "cannot be used"),
        (lambda d: d.update(pre_tokenizer={"type": "Nope"}), "cannot be used"),
        (lambda d: d.update(added_tokens={}), "added_tokens is not a list"),
        (lambda d: d.update(added_tokens=[5]), "added token 5 lacks a usable id"),
        (lambda d: d["added_tokens"].append({**TOKEN, "id": "5"}), "lacks a usable id"),
        (lambda d: d["added_tokens"].append({**TOKEN, "content": ""}), "lacks a usable id"),
        (lambda d: d["added_tokens"].append({**TOKEN, "content": "\ud800"}), "lacks a usable id"),
        (lambda d: d["added_tokens"].append({**TOKEN, "id": 0}), "id 0 is both '<|new|>' and '!'"),
        (lambda d: d["added_tokens"].append({**TOKEN, "rstrip": True}), "eats the text around it"),
        (lambda d: d["added_tokens"].append(d["added_tokens"][0]), "repeats an id or a text"),
        (
            lambda d: d["added_tokens"].append(TOKEN),
            "has ids up to 400, but the model's vocab_size is 352; take both from one repository",
        ),
    ],
)
def test_damaged_tokenizer_json(tmp_path: Path, edit: Edit, message: str) -> None:
    write_tokenizer(tmp_path, "glm4", "")
    edit_json(tmp_path, edit)
    assert_refused(tmp_path, message)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_cut_tokenizer_json(tmp_path: Path, cut: int) -> None:
    write_tokenizer(tmp_path, "glm4", "")
    file = tmp_path / "tokenizer.json"
    file.write_bytes(file.read_bytes().rstrip()[:cut])
    assert_refused(tmp_path, "tokenizer.json")


def line(token: bytes, rank: object) -> bytes:
    return base64.b64encode(token) + f" {rank}\n".encode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text + b"aGVsbG8gaGVsbG8=\n", "is b'aGVsbG8gaGVsbG8='; expected base64"),
        (lambda text: text + line(b"new", "x"), "expected base64, one space and a rank"),
        (lambda text: text + b"a?Vs 999\n", "expected base64, one space and a rank"),
        (lambda text: text + line(b"", 999).replace(b" ", b"= "), "expected base64"),
        (lambda text: text + line(b"hello", 999), "repeats a token"),
        (lambda text: text + line(b"new", 0), "are not 0 to"),
        (lambda text: text + line(b"new", 999), "are not 0 to"),
        (lambda text: text + line(b"new", -1), "are not 0 to"),
        (lambda text: text[: len(text) // 2], "tokenizer.model"),
        (lambda text: b"", "tokenizer.model"),
        (lambda text: b"\n\x0a\x05<unk>\x15\0\0\0\0\x18\x02", "expected base64"),
        (lambda text: bytes(52_428_801), "is larger than 52,428,800 bytes"),
    ],
)
def test_damaged_ranks(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    write_tokenizer(tmp_path, "chatglm", "")
    file = tmp_path / "tokenizer.model"
    file.write_bytes(damage(file.read_bytes()))
    assert_refused(tmp_path, message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "a list"),
        ("{", "not JSON"),
        ('{"added_tokens_decoder": []}', "added_tokens_decoder is not an object"),
        ('{"added_tokens_decoder": {"x": {}}}', "lacks a usable id"),
        ('{"added_tokens_decoder": {"5": 5}}', "lacks a usable id"),
    ],
)
def test_damaged_tokenizer_config(tmp_path: Path, config: str, message: str) -> None:
    write_tokenizer(tmp_path, "chatglm", "")
    (tmp_path / "tokenizer_config.json").write_text(config)
    assert_refused(tmp_path, message)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    assert_refused(tmp_path, "holds neither tokenizer.json nor tokenizer.model")


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        open_tokenizer(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parity
def test_transformers_gives_the_same_chat_ids(tmp_path: Path, template_0414: str) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, "glm4", template_0414)
    ours = Tokenizer.from_folder(tmp_path, vocab_size=352, family="glm4")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chat = [
        {"role": "system", "content": "你好"},
        {"role": "user", "content": "  hello\n\n你好👋 12345 "},
        {"role": "assistant", "content": '{"a": 1}', "metadata": "f"},
        {"role": "observation", "content": ""},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": "天气"}}]
    for offered in (None, tools):
        prompt = theirs.apply_chat_template(
            chat, tools=offered, tokenize=False, add_generation_prompt=True
        )
        assert ours.render(chat, tools=offered) == prompt
        ids = theirs(prompt, add_special_tokens=False)["input_ids"]
        assert ours.encode_chat(chat, tools=offered) == ids
        assert ours.encode(prompt) == ids
