"""One question with its answers, and the ways people type the same question.

Knows nothing of subjects, templates or tokens: the other files of this folder draw `QA`s from it.
"""

from __future__ import annotations

import re
import tomllib
import zlib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True)
class QA:
    """A question, the answers that count as right (the first is taught most), and its split.

    `brief` is the bare answer, `thought` the reasoning before it, `concluded` the answer after
    that reasoning where it is shorter, `other` the answer in the other language; empty where the
    subject has none. `held_out` is "" for training, else what is new to the model: the "phrasing"
    of the question, or the "pairing" of a known phrasing and what it asks about.
    """

    subject: str
    question: str
    answers: tuple[str, ...]
    chinese: bool = False
    brief: str = ""
    thought: str = ""
    concluded: str = ""
    other: str = ""
    held_out: str = ""

    def answer(self, rng: Random) -> str:
        """Draw an answer: the first one three times in four."""
        return self.answers[0] if rng.random() < 0.75 else rng.choice(self.answers)


def words(name: str) -> dict[str, Any]:
    """Read the phrasings and tables of one subject."""
    path = Path(__file__).parent / "words" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def one_in(n: int, *key: object) -> bool:
    """Tell whether `key` falls in a fixed one-n-th of all keys: same answer in every run."""
    return zlib.crc32("|".join(map(str, key)).encode()) % n == 0


def made_up_word(rng: Random) -> str:
    """Draw a word that nobody has met, so that copying is learnt and not the list of words."""
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    syllables = (rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.randint(1, 4)))
    return "".join((*syllables, rng.choice(("", "n", "r", "st", "x")))).capitalize()


OPENINGS = ("Hey, ", "Hi! ", "So, ", "Ok, ", "Please tell me: ", "Quick question: ", "Hello, ")
OPENINGS_CHINESE = ("请问，", "请问", "你好，", "那么，", "请告诉我，", "问一下，")


def vary(question: str, rng: Random, *, opening: bool = True) -> str:
    """Type `question` as another person might: case, punctuation, an opening, stray spaces."""
    if rng.random() < 0.4:
        return question
    if re.search("[\u4e00-\u9fff]", question):
        return _vary_chinese(question, rng, opening)
    if rng.random() < 0.25:
        question = re.sub(r"\b([Ww]hat|[Ww]ho) is\b", r"\1's", question)
    if rng.random() < 0.3:
        question = question.rstrip("?!.")
    elif rng.random() < 0.15:
        question = question.rstrip("?!.") + rng.choice(("!", "??", "?!", " ?", "...", "!!", "."))
    if opening and rng.random() < 0.15:
        question = rng.choice(OPENINGS) + question[0].lower() + question[1:]
    elif opening and rng.random() < 0.05:
        question = question.rstrip("?!.") + ", please" + ("?" if question.endswith("?") else "")
    roll = rng.random()
    if roll < 0.35:
        question = question.lower()
    elif roll < 0.38:
        question = question.upper()
    if rng.random() < 0.15:
        question = question.replace("'", "")
    return question + " " if rng.random() < 0.03 else question


def _vary_chinese(question: str, rng: Random, opening: bool) -> str:
    if opening and rng.random() < 0.2:
        question = rng.choice(OPENINGS_CHINESE) + question
    roll = rng.random()
    if roll < 0.35:
        question = question.rstrip("？！。")
    elif roll < 0.7:
        question = question.replace("？", "?").replace("！", "!").replace("，", ",")
    return question
