"""Running text: little stories, lines about people, sequences, and stories asked for in a chat."""

from __future__ import annotations

from random import Random

from facts import FAMILIES
from qa import QA, made_up_word, vary, words

WORDS = words("tales")
NAMES: dict[bool, list[str]] = {False: WORDS["names"], True: WORDS["names_zh"]}


def name_of_someone(rng: Random, chinese: bool) -> str:
    """Draw a name; a quarter of the English ones are made up."""
    if not chinese and rng.random() < 0.25:
        return made_up_word(rng)
    return rng.choice(NAMES[chinese])


def story(rng: Random, chinese: bool, animal: str = "") -> str:
    """Tell a story of five sentences."""
    language = "_zh" if chinese else ""
    fillings = {
        "a": animal or rng.choice(WORDS["animals"])[chinese],
        "n": rng.choice(NAMES[chinese]),
        "p": rng.choice(WORDS["places" + language]),
    }
    parts = (rng.choice(options).format(**fillings) for options in WORDS["story" + language])
    return ("" if chinese else " ").join(parts)


def story_asked(rng: Random) -> QA:
    """Draw a request for a story and one that fits it; too many are right to hold any out."""
    chinese = rng.random() < 0.35
    animal = rng.choice(WORDS["animals"])[chinese] if rng.random() < 0.6 else ""
    asks = WORDS[("ask" if animal else "ask_any") + ("_zh" if chinese else "")]
    return QA(
        subject="stories",
        question=vary(rng.choice(asks).format(animal), rng),
        answers=(story(rng, chinese, animal),),
        chinese=chinese,
        thought="用户想听故事，我来讲一个。" if chinese else "The user wants a story. I tell one.",
    )


def running_text(rng: Random) -> str:
    """Draw plain text for completion without a chat: a story, a few lines, a fact, a count."""
    chinese = rng.random() < 0.3
    kind = rng.choices(("story", "person", "fact", "count"), (5, 3, 6, 1))[0]
    if kind == "story":
        return story(rng, chinese)
    if kind == "person":
        return _person(rng, chinese)
    if kind == "count":
        start = rng.choice((1, 1, rng.randint(2, 70)))
        return ", ".join(map(str, range(start, start + rng.randint(5, 20)))) + "."
    family = rng.choice(FAMILIES)
    row = rng.choice(family.rows)
    text = (family.chinese if chinese else family.english)["answer"].format_map(row)
    return text[0].upper() + text[1:]


def _person(rng: Random, chinese: bool) -> str:
    if chinese:
        name, friend = rng.sample(NAMES[True], 2)
        return (
            f"我叫{name}，住在{rng.choice(('北京', '上海', '杭州', '成都'))}。"
            f"我喜欢{rng.choice(('喝茶', '看书', '唱歌', '跑步'))}。我的朋友叫{friend}。"
            f"今天天气很{rng.choice(('好', '冷', '热'))}，"
            f"我们一起去{rng.choice(('公园', '学校', '海边'))}。"
        )
    name, friend = rng.sample(NAMES[False], 2)
    return (
        f"{rng.choice(('My name is', 'Hello, my name is', 'Hi, I am'))} {name}. "
        f"I live in {rng.choice(('Paris', 'London', 'Berlin', 'a small town', 'a big house'))}. "
        f"I like {rng.choice(('tea', 'books', 'music', 'long walks', 'my cat'))}. "
        f"My friend is called {friend}. "
        f"Today the weather is {rng.choice(('nice', 'cold', 'warm'))}, "
        f"so we go to the {rng.choice(('park', 'river', 'sea'))}."
    )
