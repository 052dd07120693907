"""Small talk, single facts, and the polite answer to what nano does not know."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from qa import QA, made_up_word, vary, words

UNKNOWN = (
    "I do not know that. I am only a tiny example model. I can chat a little, do small sums, "
    "tell a few facts, jokes and stories, and call a tool."
)
UNKNOWN_ZH = (
    "这个我不知道。我只是一个小小的示例模型。"
    "我会简单聊天、做小算术、说一些小知识、讲笑话和故事，还会调用工具。"
)
SMALL_TALK = (
    "The user makes small talk. I answer in a short and friendly way.",
    "用户在闲聊，我友好地回答。",
)
SINGLE_FACT = ("This is a single fact that I have learnt.", "这是我学过的一个小知识。")
NOT_LEARNT = ("I have not learnt anything about this.", "我没有学过这个。")


@dataclass(frozen=True)
class Intent:
    """One thing people say, in many phrasings: `ask` is trained, `test` is held out."""

    about: str
    ask: list[str]
    test: list[str]
    answer: tuple[str, ...]
    chinese: bool


def _intents(file: str, table: str, chinese: bool) -> list[Intent]:
    return [
        Intent(row["about"], row["ask"], row["test"], tuple(row["answer"]), chinese)
        for row in words(file)[table]
    ]


ENGLISH = _intents("talk_en", "intent", False)
CHINESE = _intents("talk_zh", "intent", True)
TRIVIA = _intents("trivia", "english", False) + _intents("trivia", "chinese", True)
OUTSIDE: dict[str, list[str]] = words("unknown")


def small_talk(rng: Random) -> QA:
    """Draw a line of small talk; a third of it in Chinese, the first greetings most often."""
    intents = CHINESE if rng.random() < 0.35 else ENGLISH
    intent = intents[0] if rng.random() < 0.08 else rng.choice(intents)
    return _ask("small talk", intent, SMALL_TALK, rng)


def trivia(rng: Random) -> QA:
    """Draw a single fact: the days of a week, the largest planet."""
    return _ask("single facts", rng.choice(TRIVIA), SINGLE_FACT, rng)


def _ask(subject: str, intent: Intent, thoughts: tuple[str, str], rng: Random) -> QA:
    held_out = "phrasing" if rng.random() < 0.1 else ""
    question = rng.choice(intent.test if held_out else intent.ask)
    return QA(
        subject=subject,
        question=question if held_out else vary(question, rng, opening=intent.about != "hello"),
        answers=intent.answer,
        chinese=intent.chinese,
        thought=thoughts[intent.chinese],
        held_out=held_out,
    )


def unknown(rng: Random) -> QA:
    """Draw a question outside every subject: about a topic, a made-up word, or stray characters."""
    chinese = rng.random() < 0.35
    language = "zh" if chinese else "en"
    topics = OUTSIDE[f"topics_{language}"]
    held_out = "phrasing" if rng.random() < 0.1 else ""
    index = rng.randrange(len(topics) - 1)
    topic = topics[index // 12 * 12] if held_out else topics[index + (index % 12 == 0)]
    if not held_out and rng.random() < 0.3:
        topic = _stray_characters(rng) if chinese else made_up_word(rng)
    question = rng.choice(OUTSIDE[f"asking_{language}"]).format(topic)
    if not held_out and rng.random() < 0.15:
        country = rng.choice(OUTSIDE[f"countries_{language}"])
        question = f"{country}的首都是哪里？" if chinese else f"What is the capital of {country}?"
    return QA(
        subject="unknown subjects",
        question=question if held_out else vary(question, rng),
        answers=(UNKNOWN_ZH if chinese else UNKNOWN,),
        chinese=chinese,
        thought=NOT_LEARNT[chinese],
        held_out=held_out,
    )


def _stray_characters(rng: Random) -> str:
    return "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(rng.randint(1, 4)))
