"""`tokenizer.model`, the tiktoken ranks of the 2024 repositories, as a vocabulary and its merges.

Knows the file format, both ways, and how merges follow from ranks; builds no tokenizer.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path

from glm_mlx.errors import TokenizerError
from glm_mlx.text.bytelevel import to_bytes, to_token

_MAX_BYTES = 50 << 20  # GLM-4's own has 3 MB

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before merging; the file does not say, tokenization_chatglm.py does."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
"""The special tokens of GLM-4 in id order; their ids follow the last rank."""


def read_ranks(file: Path) -> dict[str, int]:
    """Read `base64(bytes) rank` lines into token -> rank, tokens spelled in the byte alphabet.

    Raises:
        TokenizerError: the file is too large, a line is malformed, a token or a rank comes twice,
            or ranks leave a gap.
    """
    ranks: dict[str, int] = {}
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"cannot be read: {error.strerror}", file=file) from error
    if len(raw) > _MAX_BYTES:
        found = f"is larger than {_MAX_BYTES:,} bytes, the limit for this file"
        raise TokenizerError(found, file=file)
    for number, line in enumerate(raw.splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            token = to_token(binascii.a2b_base64(encoded, strict_mode=True))
            value = int(rank)
        except ValueError:
            raise TokenizerError(
                f"line {number} is {line[:40]!r}; expected base64, one space and a rank", file=file
            ) from None
        if not token or token in ranks:
            found = "repeats a token" if token else "has an empty token"
            raise TokenizerError(f"line {number} {found}; the file is damaged", file=file)
        ranks[token] = value
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(
            f"the ranks of its {len(ranks):,} tokens are not 0 to {len(ranks) - 1:,}, each once; "
            "download the file again",
            file=file,
        )
    return ranks


def write_ranks(ranks: Mapping[str, int]) -> bytes:
    """Return the file that `read_ranks` reads, in rank order, as tiktoken writes it."""
    return b"".join(
        b"%s %d\n" % (binascii.b2a_base64(to_bytes(token), newline=False), ranks[token])
        for token in sorted(ranks, key=ranks.__getitem__)
    )


def merges_of(ranks: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the merges, best first, under which BPE tokenizes as tiktoken does with the ranks.

    Every way to cut a token into two others is a merge; a token's cuts stand together, in the
    order of their halves' ranks. Source: TikTokenConverter of transformers.
    """
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [
            (token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        ]
        yield from sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
