"""`tokenizer.json`: made from tiktoken ranks, turned back into them, or only looked through.

Knows the format of the `tokenizers` package. GLM-4's own has 300,000 merges: making the file and
looking through one never hold them all as objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from itertools import zip_longest
from pathlib import Path

from glm_mlx.errors import TokenizerError
from glm_mlx.text.ranks import PATTERN, merges_of
from glm_mlx.text.tokenizer import PREFIX_TOKENS
from glm_mlx.text.vocabulary import AddedToken, added_by_id, check_bytes

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def from_ranks(ranks: Mapping[str, int], added: Mapping[int, AddedToken], *, file: Path) -> bytes:
    """Return the `tokenizer.json` that tokenizes as tiktoken does with the ranks.

    It is what `tokenizers` saves of the outcome of transformers' `TikTokenConverter`, with the
    prefix that `convert_glm_weights_to_hf.py` adds.

    Args:
        file: where the ranks are from, named in errors.

    Raises:
        TokenizerError: the ids of the added tokens do not run on from the ranks, as those of a
            `tokenizer.json` do.
    """
    if sorted(added) != list(range(len(ranks), len(ranks) + len(added))):
        raise TokenizerError(
            f"has {len(ranks):,} ranks, but the ids of the {len(added)} added tokens do not run on "
            "from there; take tokenizer.model and tokenizer_config.json from one repository",
            file=file,
        )
    head, tail = _json(_shell(added)).split('"vocab":{},"merges":[]')
    vocabulary = (
        f"{_json(token)}:{ranks[token]}" for token in sorted(ranks, key=ranks.__getitem__)
    )
    out = BytesIO()
    out.write(f'{head}"vocab":{{'.encode())
    out.writelines(_separated(vocabulary))
    out.write(b'},"merges":[')
    out.writelines(_separated(map(_json, merges_of(ranks))))
    out.write(f"]{tail}".encode())
    return out.getvalue()


def to_ranks(data: object, *, file: Path) -> dict[str, int]:
    """Return the tiktoken ranks of a parsed `tokenizer.json`; the inverse of `from_ranks`.

    Raises:
        TokenizerError: ranks alone, cut by GLM's pattern, would not tokenize as the file does.
    """
    match data:
        case {
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            },
            "model": {
                "type": "BPE",
                "ignore_merges": True,
                "vocab": dict(vocabulary),
                "merges": list(merges),
            },
            "added_tokens": list(listed),
        } if pattern == PATTERN:
            pass
        case _:
            raise _not_ranks("it cuts or merges text in another way than GLM-4's", file)
    texts = {token.text for token in added_by_id(listed, file).values()}
    ranks = {token: index for token, index in vocabulary.items() if token not in texts}
    check_bytes(ranks, file)
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise _not_ranks("the ids of its tokens leave gaps", file)
    given = (tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges)
    if any(ours != theirs for ours, theirs in zip_longest(merges_of(ranks), given)):
        raise _not_ranks("its merges do not follow from the ranks", file)
    return ranks


def look_through(raw: bytes, *, file: Path) -> tuple[dict[int, AddedToken], int]:
    """Return the added tokens of a `tokenizer.json` by id, and its highest id plus one.

    Raises:
        TokenizerError: it is not JSON, lacks what a `tokenizer.json` has, or lists malformed ids.
    """
    added: dict[int, AddedToken] = {}
    found = list[str]()
    size = 0
    try:
        scanner = _Scanner(raw.decode("utf-8-sig"))
        for key in scanner.members():
            if key == "added_tokens":
                found.append(key)
                added = added_by_id([scanner.value() for _ in scanner.items()], file)
            elif key == "model":
                for part in scanner.members():
                    found.append(part)
                    if part == "vocab":
                        size = (
                            max((_id(scanner.value()) for _ in scanner.members()), default=-1) + 1
                        )
                    elif part == "merges":
                        for _ in scanner.items():
                            scanner.value()
                    else:
                        scanner.value()
            else:
                scanner.value()
        scanner.end()
    except (ValueError, RecursionError) as cause:
        reason = " ".join(str(cause).split())[:200]
        raise TokenizerError(f"is damaged: {reason}; download it again", file=file) from cause
    if missing := {"added_tokens", "vocab", "merges"}.difference(found):
        raise TokenizerError(
            f"lacks {min(missing)}: it is not the tokenizer.json of a byte-level BPE", file=file
        )
    return added, max([size, *(index + 1 for index in added)])


class _Scanner:
    """A walk through JSON text; what is passed is not kept.

    Raises:
        ValueError: the text is not JSON.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._decode = json.JSONDecoder().raw_decode

    def value(self) -> object:
        """Pass one value of any kind and return it."""
        self._skip_blanks()
        value, self._at = self._decode(self._text, self._at)
        return value

    def members(self) -> Iterator[str]:
        """Yield the keys of an object; the value of each is to be passed before the next."""
        for _ in self._inside("{}"):
            key = self.value()
            if not isinstance(key, str):
                raise json.JSONDecodeError("Expecting a key before", self._text, self._at)
            self._take(":")
            yield key

    def items(self) -> Iterator[None]:
        """Stop before each item of a list; each is to be passed before the next."""
        return self._inside("[]")

    def end(self) -> None:
        """Check that nothing follows."""
        self._skip_blanks()
        if self._at < len(self._text):
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def _inside(self, brackets: str) -> Iterator[None]:
        self._take(brackets[0])
        self._skip_blanks()
        if self._text.startswith(brackets[1], self._at):
            self._at += 1
            return
        yield
        while self._take("," + brackets[1]) == ",":
            yield

    def _take(self, expected: str) -> str:
        self._skip_blanks()
        found = self._text[self._at : self._at + 1]
        if not found or found not in expected:
            raise json.JSONDecodeError(f"Expecting {expected!r}", self._text, self._at)
        self._at += 1
        return found

    def _skip_blanks(self) -> None:
        blanks = _BLANKS.match(self._text, self._at)
        assert blanks is not None
        self._at = blanks.end()


_BLANKS = re.compile(r"[ \t\n\r]*")


def _id(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("model.vocab holds an id that is not a whole number")
    return value


def _separated(pieces: Iterable[str]) -> Iterator[bytes]:
    for number, piece in enumerate(pieces):
        yield (f",{piece}" if number else piece).encode()


def _not_ranks(reason: str, file: Path) -> TokenizerError:
    return TokenizerError(f"cannot be turned into tokenizer.model: {reason}", file=file)


def _shell(added: Mapping[int, AddedToken]) -> dict[str, object]:
    """The whole file but for the vocabulary and its merges."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    split = {"Regex": PATTERN}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": added[i].text, **flags, "special": added[i].special}
            for i in sorted(added)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False},
                _byte_level(add_prefix_space=False, use_regex=False),
            ],
        },
        "post_processor": _post_processor({token.text: token.id for token in added.values()}),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {},
            "merges": [],
        },
    }


def _post_processor(ids: Mapping[str, int]) -> dict[str, object]:
    """Puts GLM's prefix before what is encoded, in vocabularies that have it."""
    offsets = _byte_level(trim_offsets=False)
    if not ids.keys() >= {*PREFIX_TOKENS}:
        return offsets
    prefix = [{"SpecialToken": {"id": text, "type_id": 0}} for text in PREFIX_TOKENS]
    first, second = ({"Sequence": {"id": i, "type_id": t}} for i, t in (("A", 0), ("B", 1)))
    template = {
        "type": "TemplateProcessing",
        "single": [*prefix, first],
        "pair": [*prefix, first, second],
        "special_tokens": {
            text: {"id": text, "ids": [ids[text]], "tokens": [text]}
            for text in sorted(PREFIX_TOKENS)
        },
    }
    return {"type": "Sequence", "processors": [offsets, template]}


def _byte_level(**options: bool) -> dict[str, object]:
    defaults = {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {"type": "ByteLevel", **defaults, **options}
