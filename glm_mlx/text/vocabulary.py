"""The tokenizer files of a model folder -> one byte-level BPE and its added tokens.

Reads `tokenizer.json` or `tokenizer.model`, checks what they say, and runs no code from the
folder. Knows how plain text becomes ids; what added tokens mean is for the tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import tokenizers
from tokenizers import models, pre_tokenizers

from glm_mlx.errors import TokenizerError
from glm_mlx.jsonfile import read_json_object
from glm_mlx.modelfile import find_file
from glm_mlx.text.bytelevel import ALPHABET
from glm_mlx.text.ranks import PATTERN, SPECIAL_TOKENS, merges_of, read_ranks

MAX_TOKENIZER_BYTES = 200 << 20  # GLM-4's own tokenizer.json has 20 MB
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class AddedToken:
    """A token outside the merges; `special` ones are left out of decoded text."""

    id: int
    text: str
    special: bool

    @property
    def steers(self) -> bool:
        """Whether it directs the conversation, so that typed text must not become it.

        GLM's own tokens do, whatever a converted folder says of them.
        """
        return self.special or self.text in SPECIAL_TOKENS


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE for plain text, and the added tokens beside it.

    Attributes:
        bpe: encodes plain text; knows no added token, so no text can turn into one.
        added: in id order.
        size: the highest id plus one; rows of an embedding from there on are padding.
        longest_token_bytes: no token covers more of a text.
    """

    bpe: tokenizers.Tokenizer
    added: tuple[AddedToken, ...]
    size: int
    longest_token_bytes: int

    def added_texts(self, *, steering: bool) -> list[str]:
        """Return the texts of the added tokens that steer, or of the others, longest first."""
        texts = [token.text for token in self.added if token.steers is steering]
        return sorted(texts, key=len, reverse=True)


def read_vocabulary(folder: Path, settings: Mapping[str, object]) -> Vocabulary:
    """Read the vocabulary of a model folder; `settings` is its tokenizer_config.json.

    Raises:
        TokenizerError: no tokenizer file, a damaged one, or one that is not byte-level BPE.
    """
    if fast := find_file(folder, "tokenizer.json", error=TokenizerError):
        return _from_tokenizer_json(fast, settings)
    if ranks := find_file(folder, "tokenizer.model", error=TokenizerError):
        return _from_ranks(ranks, settings)
    missing_vocabulary(folder)


def missing_vocabulary(folder: Path) -> NoReturn:
    """Refuse a folder without a tokenizer."""
    raise TokenizerError(
        "holds neither tokenizer.json nor tokenizer.model; download one of them", file=folder
    )


def _from_tokenizer_json(file: Path, settings: Mapping[str, object]) -> Vocabulary:
    data = read_json_object(file, error=TokenizerError, max_bytes=MAX_TOKENIZER_BYTES)
    match data.get("model"):
        case {"type": "BPE", "vocab": dict(tokens), "merges": list(pairs), **options}:
            pass
        case _:
            raise TokenizerError("its model is not a BPE with vocab and merges", file=file)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if options.get(key):
            raise TokenizerError(f"model.{key} is set, which byte-level BPE never does", file=file)
    listed = data.get("added_tokens", [])
    if not isinstance(listed, list):
        raise TokenizerError("added_tokens is not a list", file=file)
    added = join_added(added_by_id(listed, file), settings)
    # Trainers may list added tokens among the others, where plain text could reach them.
    texts = {token.text for token in added.values()}
    tokens = {token: index for token, index in tokens.items() if token not in texts}
    check_bytes(tokens, file)
    shell = {"normalizer": data.get("normalizer"), "pre_tokenizer": data.get("pre_tokenizer")}
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    try:
        merges = [tuple(p.split(" ") if isinstance(p, str) else p) for p in pairs]
        bpe = models.BPE(tokens, merges, ignore_merges=bool(options.get("ignore_merges")))
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(shell | {"model": empty}))
    except Exception as error:  # the Rust side raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(f"cannot be used: {reason}; download it again", file=file) from error
    tokenizer.model = bpe
    return _vocabulary(tokenizer, tokens, added, file)


def _from_ranks(file: Path, settings: Mapping[str, object]) -> Vocabulary:
    ranks = read_ranks(file)
    check_bytes(ranks, file)
    added = added_beside_ranks(ranks, settings)
    tokenizer = tokenizers.Tokenizer(models.BPE(ranks, list(merges_of(ranks)), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _vocabulary(tokenizer, ranks, added, file)


def join_added(
    listed: Mapping[int, AddedToken], settings: Mapping[str, object]
) -> dict[int, AddedToken]:
    """Return the added tokens of a `tokenizer.json` and those only its config lists, by id."""
    added = dict(listed)
    texts = {token.text for token in listed.values()}
    for token in added_tokens(settings).values():
        if token.text not in texts:
            added.setdefault(token.id, token)
    return added


def added_beside_ranks(
    ranks: Mapping[str, int], settings: Mapping[str, object]
) -> dict[int, AddedToken]:
    """Return the added tokens of a `tokenizer.model`, which names none, by id."""
    return added_tokens(settings) or {
        index: AddedToken(index, text, special=True)
        for index, text in enumerate(SPECIAL_TOKENS, start=len(ranks))
    }


def _vocabulary(
    bpe: tokenizers.Tokenizer, tokens: dict[str, int], added: dict[int, AddedToken], file: Path
) -> Vocabulary:
    ids = set(tokens.values())
    if len(ids) < len(tokens):
        raise TokenizerError("model.vocab gives two tokens one id; download it again", file=file)
    for token in added.values():
        if token.id in ids:
            raise TokenizerError(
                f"id {token.id} is both {token.text!r} and {bpe.id_to_token(token.id)!r}", file=file
            )
    longest = max(len(token) for token in tokens)  # each character of these stands for a byte
    return Vocabulary(
        bpe,
        added=tuple(added[i] for i in sorted(added)),
        size=max(ids | added.keys()) + 1,
        longest_token_bytes=max([longest, *(len(token.text.encode()) for token in added.values())]),
    )


def check_size(size: int, vocab_size: int, folder: Path) -> None:
    """Check that a tokenizer's ids, all below `size`, are rows of a model's embedding.

    Raises:
        TokenizerError: naming `folder`.
    """
    if size > vocab_size:
        raise TokenizerError(
            f"the tokenizer has ids up to {size - 1:,}, but the model's vocab_size "
            f"is {vocab_size:,}; take both from one repository",
            file=folder,
        )


def check_bytes(tokens: Mapping[str, int], file: Path) -> None:
    """Check that tokens, in the byte alphabet, can spell every text.

    Raises:
        TokenizerError: naming `file`; an id or a token is malformed, or a byte has no token.
    """
    if not all(type(index) is int and index >= 0 for index in tokens.values()):
        raise TokenizerError("model.vocab holds an id that is not a whole number", file=file)
    if foreign := set().union(*tokens).difference(ALPHABET):
        raise TokenizerError(
            f"its tokens are not byte-level: they hold {min(foreign)!r}; "
            "only byte-level BPE, GLM's own kind, is supported",
            file=file,
        )
    if missing := [byte for byte, token in enumerate(ALPHABET) if token not in tokens]:
        raise TokenizerError(
            f"lacks {len(missing)} of the 256 single-byte tokens, so some text has no ids; "
            f"the first is byte 0x{missing[0]:02X}",
            file=file,
        )


def added_tokens(settings: Mapping[str, object]) -> dict[int, AddedToken]:
    """Return the added tokens that tokenizer_config.json lists, by id."""
    file = "tokenizer_config.json"
    match settings.get("added_tokens_decoder"):
        case None:
            return {}
        case dict(listed):
            entries = [
                {"id": int(key) if key.isdecimal() else key, **entry}
                if isinstance(entry, dict)
                else entry
                for key, entry in listed.items()
            ]
            return added_by_id(entries, file)
        case _:
            raise TokenizerError("added_tokens_decoder is not an object", file=file)


def added_by_id(entries: list[object], file: object) -> dict[int, AddedToken]:
    """Return the entries of a list of added tokens, by id.

    Raises:
        TokenizerError: an entry is malformed, repeated, or eats the text around it.
    """
    added: dict[int, AddedToken] = {}
    texts: set[str] = set()
    for entry in entries:
        match entry:
            case {"lstrip": True} | {"rstrip": True} | {"single_word": True}:
                problem = "eats the text around it, which no GLM token does"
            case {"id": int(index), "content": str(text), "special": bool(special)} if (
                index >= 0 and text and not _SURROGATE.search(text)
            ):
                if index not in added and text not in texts:
                    added[index] = AddedToken(index, text, special)
                    texts.add(text)
                    continue
                problem = "repeats an id or a text"
            case _:
                problem = "lacks a usable id, content or special"
        raise TokenizerError(f"added token {entry!r:.80} {problem}", file=file)
    return added
