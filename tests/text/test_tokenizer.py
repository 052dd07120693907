"""Text to ids and back: the golden ids of GLM-4, the prefix, special tokens, padding rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.vocabulary import SPECIALS, special_ids

from glm_mlx.errors import OptionError
from glm_mlx.text import Tokenizer

PREFIX = [151331, 151333]
HELLO = {"role": "user", "content": "你好"}
REPLY = {"role": "assistant", "content": "你好👋！很高兴见到你，有什么可以帮助你的吗？"}
SLEEP = {"role": "user", "content": "晚上睡不着应该怎么办"}

pieces = st.sampled_from([*SPECIALS, "<|", "|>", "[", " ", "\n", "你好", "hello", "👋", "12"])
texts = st.lists(pieces | st.text(max_size=4)).map("".join)


def test_golden_ids_of_glm4(glm4_sized: Tokenizer) -> None:
    reply = [109377, 9281, 239, 233, 6313, 118295, 103810, 98406, 3837, 101665, 110368]
    reply += [99444, 99212, 11314]
    sleep = [101160, 120410, 99379, 103298]
    assert glm4_sized.encode("你好") == [*PREFIX, 109377]
    assert glm4_sized.encode_chat([HELLO]) == [*PREFIX, 151336, 198, 109377, 151337]
    assert glm4_sized.encode_chat([HELLO, REPLY, SLEEP]) == [
        *[*PREFIX, 151336, 198, 109377, 151337, 198, *reply],
        *[151336, 198, *sleep, 151337],
    ]
    assert glm4_sized.encode("3", prefix=False) + glm4_sized.encode(" ", prefix=False) == [18, 220]


def test_golden_special_tokens_of_glm4(glm4_sized: Tokenizer) -> None:
    assert dict(glm4_sized.special_ids) == dict(zip(SPECIALS, range(151329, 151343), strict=True))
    assert glm4_sized.stop_ids == {151329, 151336, 151338}
    assert glm4_sized.vocab_size == 151343
    assert glm4_sized.decode(range(151343, 151552), skip_special=False) == ""


def test_equals_tiktoken(pytestconfig: pytest.Config) -> None:
    script = Path(__file__).parents[1] / "bench" / "tokenizer_parity.py"
    command = [sys.executable, str(script), "--strings", "3000"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    found = json.loads(run.stdout)
    assert found["strings"] == 3000
    assert found["first_differences"] == []


@settings(deadline=None)
@given(text=texts, skip=st.booleans())
def test_equals_the_fast_tokenizer_of_the_folder(
    tiny: Tokenizer, fast_tokenizer: tokenizers.Tokenizer, text: str, skip: bool
) -> None:
    theirs = fast_tokenizer.encode(text, add_special_tokens=False).ids
    assert tiny.encode(text, prefix=False) == theirs
    assert tiny.decode(theirs, skip_special=skip) == fast_tokenizer.decode(
        theirs, skip_special_tokens=skip
    )


@settings(deadline=None)
@given(texts)
def test_plain_text_has_no_special_id(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text, prefix=False, parse_special=False)
    assert not {*ids} & {*tiny.special_ids.values()}
    assert tiny.decode(ids) == text


def test_the_prefix_is_never_doubled(tiny: Tokenizer) -> None:
    prefix = [special_ids()["[gMASK]"], special_ids()["<sop>"]]
    hello = tiny.encode("hello", prefix=False)
    assert tiny.encode("hello") == prefix + hello
    assert tiny.encode("[gMASK]<sop>hello") == prefix + hello
    assert tiny.encode("") == prefix
    assert tiny.encode("[gMASK]hello") == [*prefix, prefix[0], *hello]
    typed = tiny.encode("[gMASK]<sop>hello", parse_special=False)
    assert typed[:2] == prefix
    assert tiny.decode(typed) == "[gMASK]<sop>hello"


@settings(deadline=None)
@given(st.lists(st.integers(0, 360)), st.booleans())
def test_decode_equals_the_fast_tokenizer_on_any_ids(
    tiny: Tokenizer, fast_tokenizer: tokenizers.Tokenizer, ids: list[int], skip: bool
) -> None:
    assert tiny.decode(ids, skip_special=skip) == fast_tokenizer.decode(
        ids, skip_special_tokens=skip
    )


@settings(deadline=None)
@given(st.lists(st.integers(0, 360) | st.sampled_from(["你好", "👋", "\ufffd", "<|user|>"])))
def test_pieces_joined_are_the_whole(tiny: Tokenizer, parts: list[int | str]) -> None:
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else tiny.encode(part, prefix=False)
    detokenizer = tiny.detokenizer()
    pushed = [detokenizer.push(id) for id in ids]
    assert "".join(pushed) + detokenizer.finish() == tiny.decode(ids)


def test_pieces_hold_whole_characters_only(tiny: Tokenizer) -> None:
    text = "你好👋é\ufffd " * 20
    detokenizer = tiny.detokenizer()
    byte_ids = [tiny.encode(c, prefix=False)[0] for c in "abc"]
    pushed = [detokenizer.push(id) for id in [*byte_ids, *tiny.encode(text, prefix=False)]]
    assert "".join(pushed) == "abc" + text
    assert pushed[:3] == ["a", "b", "c"]
    assert sum(piece.count("\ufffd") for piece in pushed) == 20
    assert detokenizer.finish() == ""


def test_a_cut_character_shows_only_at_the_end(tiny: Tokenizer) -> None:
    detokenizer = tiny.detokenizer()
    first, second = tiny.encode("é", prefix=False)
    assert detokenizer.push(first) == ""
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.push(first) + detokenizer.push(second) == "é"


def test_many_threads_get_the_same_ids(tiny: Tokenizer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    rng = random.Random(0)
    lines = ["".join(rng.choices("你好hello 12\n<|user|>", k=50)) for _ in range(200)]
    chats = [[{"role": "user", "content": line}] for line in lines]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tiny.encode, lines)) == [tiny.encode(line) for line in lines]
        found = list(pool.map(tiny.encode_chat, chats))
    assert found == [tiny.encode_chat(chat) for chat in chats]


@pytest.mark.parametrize("text", ["\ud800", "ok \udc3c|user|>"])
def test_lone_surrogates_are_named(tiny: Tokenizer, text: str) -> None:
    with pytest.raises(OptionError, match=r"text holds the lone surrogate U\+D"):
        tiny.encode(text)


@pytest.mark.parametrize("text", [None, b"hello", 5, ["hello"]])
def test_only_strings_are_text(tiny: Tokenizer, text: object) -> None:
    with pytest.raises(OptionError, match=f"text is a {type(text).__name__}"):
        tiny.encode(text)  # type: ignore[arg-type]
