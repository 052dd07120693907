"""Facts in tables (words/facts.toml): capitals, opposites, colours, animals, words, calendar."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from qa import QA, one_in, vary, words

TABLES = words("facts")


@dataclass(frozen=True)
class Family:
    """Facts of one kind: the words of each row, and how to ask and answer in both languages."""

    subject: str
    rows: tuple[dict[str, str], ...]
    english: dict[str, str]
    chinese: dict[str, str]
    ask_english: tuple[str, ...]
    ask_chinese: tuple[str, ...]


def _words(row: list[str]) -> dict[str, str]:
    words = {f"c{index}": word for index, word in enumerate(row)}
    if row[0].endswith(" is"):
        thing = row[0].removesuffix(" is")
        words |= {"thing": thing, "Thing": thing[0].upper() + thing[1:], "is": "is"}
    return words


def _families() -> tuple[Family, ...]:
    families = []
    for spec in TABLES["family"]:
        table: list[list[str]] = TABLES[spec["rows"]]
        if spec.get("next_row"):
            following = table[1:] + table[:1]
            table = [[a[0], b[0], a[1], b[1]] for a, b in zip(table, following, strict=True)]
        elif spec.get("both_ways"):
            table = table + [[b, a, d, c] for a, b, c, d in table]
        parts = {
            language: {name: _named(spec[f"{name}_{language}"]) for name in PARTS}
            for language in ("en", "zh")
        }
        families.append(
            Family(
                spec["subject"],
                tuple(_words(row) for row in table),
                parts["en"],
                parts["zh"],
                tuple(_named(ask) for ask in spec["ask_en"]),
                tuple(_named(ask) for ask in spec["ask_zh"]),
            )
        )
    return tuple(families)


def _named(text: str) -> str:
    """Turn the column number {0} into the field name {c0}, so that one mapping fills it all."""
    for column in range(4):
        text = text.replace(f"{{{column}}}", f"{{c{column}}}")
    return text


PARTS = ("answer", "brief", "thought")
FAMILIES = _families()


def fact(rng: Random) -> QA:
    """Draw a fact; one pairing of row and phrasing in ten is held out, and each last phrasing."""
    family = rng.choices(FAMILIES, [10 + len(family.rows) for family in FAMILIES])[0]
    chinese = rng.random() < 0.4
    asks = family.ask_chinese if chinese else family.ask_english
    row = rng.choice(family.rows)
    index = rng.randrange(len(asks))
    held_out = "phrasing" if index == len(asks) - 1 else ""
    if not held_out and index and one_in(10, family.subject, chinese, index, *row.values()):
        held_out = "pairing"
    question = asks[index].format_map(row)
    question = question[0].upper() + question[1:]
    texts = (family.chinese if chinese else family.english).items()
    said = {name: text.format_map(row) for name, text in texts}
    other = (family.english if chinese else family.chinese)["answer"].format_map(row)
    return QA(
        subject=family.subject,
        question=question if held_out else vary(question, rng),
        answers=(said["answer"],),
        chinese=chinese,
        brief=said["brief"],
        thought=said["thought"],
        other=other,
        held_out=held_out,
    )
