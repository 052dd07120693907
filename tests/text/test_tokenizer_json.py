"""`tokenizer.json` against the `tokenizers` package, which defines the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.vocabulary import SPECIALS, make_ranks, make_tokenizer, special_ids
from tokenizers import Tokenizer

from glm_mlx.errors import TokenizerError
from glm_mlx.text.bytelevel import to_token
from glm_mlx.text.ranks import read_ranks, write_ranks
from glm_mlx.text.tokenizer_json import from_ranks, look_through, to_ranks
from glm_mlx.text.vocabulary import AddedToken

FILE = Path("tokenizer.json")
RANKS = {to_token(token): rank for rank, token in enumerate(make_ranks())}
ADDED = {i: AddedToken(i, text, special=True) for text, i in special_ids().items()}
RAW = from_ranks(RANKS, ADDED, file=FILE)


def test_it_is_what_tokenizers_saves() -> None:
    assert RAW.decode() == make_tokenizer().to_str(pretty=False)


def test_a_vocabulary_without_the_prefix_gets_none() -> None:
    word = AddedToken(len(RANKS), "<word>", special=False)
    made = Tokenizer.from_str(from_ranks(RANKS, {word.id: word}, file=FILE).decode())
    assert made.encode("a<word>").ids == [RANKS["a"], word.id]
    assert made.decode([word.id], skip_special_tokens=True) == "<word>"


@pytest.mark.parametrize("ids", [(0,), (len(RANKS) + 1,), (len(RANKS), len(RANKS) + 2)], ids=str)
def test_added_tokens_that_do_not_follow_the_ranks_are_refused(ids: tuple[int, ...]) -> None:
    added = {i: AddedToken(i, f"<{i}>", special=True) for i in ids}
    with pytest.raises(TokenizerError, match="do not run on from there"):
        from_ranks(RANKS, added, file=FILE)


def test_ranks_come_back() -> None:
    assert to_ranks(json.loads(RAW), file=FILE) == RANKS


def test_the_file_of_ranks_is_tiktokens(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(write_ranks(RANKS))
    assert read_ranks(file) == RANKS
    assert file.read_bytes().startswith(b"IQ== 0\nIg== 1\n")


def merges_as_texts(data: Any) -> None:
    """As older versions of `tokenizers` save them."""
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]


def specials_among_the_tokens(data: Any) -> None:
    """As trainers save them."""
    data["model"]["vocab"] |= special_ids()


@pytest.mark.parametrize("edit", [merges_as_texts, specials_among_the_tokens])
def test_other_spellings_of_the_same_ranks(edit: Callable[[Any], None]) -> None:
    data = json.loads(RAW)
    edit(data)
    assert to_ranks(data, file=FILE) == RANKS


def other_pattern(data: Any) -> None:
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}|\P{N}+"


def other_normalizer(data: Any) -> None:
    data["normalizer"] = {"type": "NFC"}


def merging_only(data: Any) -> None:
    data["model"]["ignore_merges"] = False


def other_order(data: Any) -> None:
    data["model"]["merges"].reverse()


def fewer_merges(data: Any) -> None:
    data["model"]["merges"].pop()


def a_gap(data: Any) -> None:
    data["model"]["vocab"]["gap"] = 1000


@pytest.mark.parametrize(
    "edit", [other_pattern, other_normalizer, merging_only, other_order, fewer_merges, a_gap]
)
def test_what_ranks_cannot_say_is_refused(edit: Callable[[Any], None]) -> None:
    data = json.loads(RAW)
    edit(data)
    with pytest.raises(TokenizerError, match="cannot be turned into"):
        to_ranks(data, file=FILE)


@pytest.mark.parametrize("indent", [None, 2])
def test_looking_through_finds_added_tokens_and_size(indent: int | None) -> None:
    raw = json.dumps(json.loads(RAW), indent=indent).encode()
    added, size = look_through(raw, file=FILE)
    assert [token.text for token in added.values()] == list(SPECIALS)
    assert added == ADDED
    assert size == len(RANKS) + len(SPECIALS)


@given(stop=st.integers(0, len(RAW) - 1))
def test_a_cut_file_is_refused(stop: int) -> None:
    with pytest.raises(TokenizerError, match="damaged"):
        look_through(RAW[:stop], file=FILE)


@given(data=st.data())
def test_what_is_not_json_is_refused(data: st.DataObject) -> None:
    """Wherever a structural character is replaced by another."""
    places = [i for i, byte in enumerate(RAW[:2000]) if byte in b'{}[]:,"']
    place = data.draw(st.sampled_from(places))
    broken = RAW[:place] + b"\x00" + RAW[place + 1 :]
    with pytest.raises(TokenizerError, match="damaged"):
        look_through(broken, file=FILE)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{}", "lacks added_tokens"),
        (b'{"added_tokens": [], "model": {"merges": []}}', "lacks vocab"),
        (b'{"added_tokens": [], "model": {"vocab": {}}}', "lacks merges"),
        (b'{"added_tokens": [], "model": {"vocab": {"a": -1}, "merges": []}}', "whole number"),
        (b'{"added_tokens": [], "model": {"vocab": {"a": true}, "merges": []}}', "whole number"),
        (b'{"added_tokens": [{"id": 1}], "model": {}}', "lacks a usable id"),
        (b'{"added_tokens": [], "model": {"vocab": {}, "merges": []}} x', "Extra data"),
        (b'{"added_tokens": {}}', "damaged"),
        (b"{1: 2}", "damaged"),
        (b"[]", "damaged"),
        (b"", "damaged"),
        (b"\xff", "damaged"),
        (b'{"a":' + b"[" * 100_000, "damaged"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_tokenizer_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason):
        look_through(raw, file=FILE)
