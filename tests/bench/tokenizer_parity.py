"""Compares our tokenizer, built from tiktoken ranks, with tiktoken itself; prints JSON.

    python tests/bench/tokenizer_parity.py --strings 20000
    python tests/bench/tokenizer_parity.py --strings 2000 --vocabulary 151329   # the real size

The vocabulary is synthetic: grown pair by pair as BPE grows one, over text of the same kinds as
the strings. Exit code 1 if any ids differ.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from glm_mlx.text.bytelevel import ALPHABET, to_bytes
from glm_mlx.text.ranks import PATTERN, SPECIAL_TOKENS
from glm_mlx.text.tokenizer import Tokenizer

WORDS = """the of and to in is was It's don't they'll I've WE'RE hello world def return class
print import self None True std::vector cout << endl; #include <stdio.h> https://x.com/?q=1&b=2
naïve Straße ſ's K'll ﬁne Ωμέγα Привет мир שלום مرحبا नमस्ते สวัสดี 안녕하세요 こんにちは カタカナ"""
CHINESE = (
    "的一是不了人我在有他这为之大来以个中上们你好世界晚上睡不着应该怎么办很高兴见到有什么可以帮助"
)
SYMBOLS = [
    "👋",
    "👩\u200d👧",
    "🇨🇳",
    "👍🏽",
    "❤\ufe0f",
    "é",
    "e\u0301",
    "ﷺ",
    "𠮷",
    "①",
    "½",
    "Ⅷ",
    "٣",
    "߷",
]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\n\n", "\r", "\u00a0", "\u3000", "\u2028", "\x85", "\x0b"]
MARKS = [
    "！",
    "，",
    "。",
    "？",
    "...",
    "'",
    "''s",
    '"',
    "({[",
    "]})",
    "<|",
    "|>",
    "--",
    "=>",
    "\\n",
]


def piece(rng: random.Random) -> str:
    """Return a short string of one kind, tame or nasty."""
    match rng.randrange(10):
        case 0 | 1:
            return rng.choice(WORDS.split())
        case 2 | 3:
            return "".join(rng.choices(CHINESE, k=rng.randint(1, 8)))
        case 4:
            return "".join(rng.choices(SPACES, k=rng.randint(1, 6)))
        case 5:
            return "".join(rng.choices("0123456789", k=rng.randint(1, 12)))
        case 6:
            return "".join(rng.choices(SYMBOLS, k=rng.randint(1, 3)))
        case 7:
            return rng.choice([*MARKS, *SPECIAL_TOKENS])
        case 8:
            return rng.choice(["a", " ", "\n", "1", "哈", "!", "\0"]) * rng.randint(1, 40)
        case _:
            return "".join(chr(any_code_point(rng)) for _ in range(rng.randint(1, 6)))


def any_code_point(rng: random.Random) -> int:
    """Return a code point of any plane, but no surrogate."""
    top = rng.choice([0x80, 0x800, 0x10000, 0x20000, 0x110000])
    point = rng.randrange(top)
    return point if not 0xD800 <= point < 0xE000 else 0xFFFD


def text(rng: random.Random) -> str:
    """Return a string of several pieces, with or without spaces between them."""
    return rng.choice(["", " ", "\n"]).join(piece(rng) for _ in range(rng.randint(0, 12)))


def grow_vocabulary(size: int, rng: random.Random) -> list[bytes]:
    """Return `size` tokens in rank order: the bytes, BPE's merges, then pairs of tokens."""
    trainee = tokenizers.Tokenizer(models.BPE())
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, 4000), initial_alphabet=list(ALPHABET), show_progress=False
    )
    trainee.train_from_iterator((text(rng) for _ in range(4000)), trainer)
    ids = trainee.get_vocab()
    tokens = [to_bytes(token) for token in sorted(ids, key=ids.__getitem__)]
    known = set(tokens)
    while len(tokens) < size:
        pair = b"".join(tokens[int(len(tokens) * rng.random() ** 2)] for _ in range(2))
        if len(pair) <= 16 and pair not in known:
            known.add(pair)
            tokens.append(pair)
    return tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strings", type=int, default=20_000)
    parser.add_argument("--vocabulary", type=int, default=3_000)
    parser.add_argument("--seed", type=int, default=4)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    tokens = grow_vocabulary(options.vocabulary, rng)
    with tempfile.TemporaryDirectory() as folder:
        lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
        Path(folder, "tokenizer.model").write_bytes(b"".join(lines))
        start = time.process_time()
        ours = Tokenizer.from_folder(Path(folder), vocab_size=160_000, family="chatglm")
        load_cpu_seconds = time.process_time() - start
    theirs = tiktoken.Encoding(
        "synthetic",
        pat_str=PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens=dict(ours.special_ids),
    )
    different = []
    for _ in range(options.strings):
        sample = text(rng)
        plain = ours.encode(sample, prefix=False, parse_special=False)
        parsed = ours.encode(sample, prefix=False)
        if (
            plain != theirs.encode(sample, disallowed_special=())
            or parsed != theirs.encode(sample, allowed_special="all")
            or ours.decode(parsed, skip_special=False) != sample
        ):
            different.append(sample)
    print(
        json.dumps(
            {
                "strings": options.strings,
                "differences": len(different),
                "first_differences": different[:5],
                "vocabulary_tokens": len(tokens),
                "load_cpu_seconds": round(load_cpu_seconds, 2),
            },
            ensure_ascii=False,
        )
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
