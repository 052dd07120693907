"""Dialogues for training and test, drawn from the subjects: which turns there are, who says what.

Knows messages and text, no token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from facts import fact
from qa import QA, made_up_word, one_in, vary, words
from sums import counting, sum_, taught_sum
from tales import name_of_someone, running_text, story_asked
from talk import small_talk, trivia, unknown
from tools import KINDS as TOOLS
from tools import Message, schema, tool_talk

SUBJECTS: tuple[tuple[Callable[[Random], QA], int], ...] = (
    (small_talk, 21),
    (trivia, 5),
    (fact, 28),
    (sum_, 32),
    (counting, 7),
    (unknown, 6),
    (story_asked, 3),
)
WORDS = words("manner")


@dataclass(frozen=True)
class Dialogue:
    """Messages that end with the user or a tool, and the completions that would be right.

    `learn_history`: the assistant's earlier turns are taught too. `stop` ends the completion.
    A `text` dialogue has no messages: `text` is completed as it stands.
    """

    subject: str
    messages: list[Message] = field(default_factory=list)
    completions: tuple[str, ...] = ()
    tools: list[dict[str, object]] | None = None
    learn_history: bool = False
    stop: str = "<|user|>"
    text: str = ""
    held_out: str = ""


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def draw_qa(rng: Random, *, known: bool = False) -> QA:
    """Draw from all subjects; `known`: only what is in the training set."""
    sources, weights = zip(*SUBJECTS, strict=True)
    while True:
        qa: QA = rng.choices(sources, weights)[0](rng)
        if not (known and qa.held_out):
            return qa


def single(rng: Random) -> Dialogue:
    """One question, now and then under a system prompt that changes nothing, or idle tools."""
    qa = draw_qa(rng)
    messages = [user(qa.question)]
    tools = None
    if rng.random() < 0.12:
        messages.insert(
            0, system(rng.choice(WORDS["helpful_zh" if rng.random() < 0.3 else "helpful"]))
        )
    elif not qa.held_out and rng.random() < 0.03 and "get_" not in qa.answers[0]:
        tools = [schema(kind, rng) for kind in rng.sample(TOOLS, rng.randint(1, 2))]
    return Dialogue(
        subject=qa.subject,
        messages=messages,
        completions=qa.answers,
        tools=tools,
        held_out=qa.held_out,
    )


def instructed(rng: Random) -> Dialogue:
    """One question under a system prompt that shapes the answer."""
    style = rng.choice(("pirate", "smile", "brief", "brief", "language", "language", "name"))
    if style == "name":
        chinese = rng.random() < 0.4
        name = name_of_someone(rng, chinese)
        language = "_zh" if chinese else ""
        prompt = rng.choice(WORDS["named" + language]).format(name)
        question = rng.choice(WORDS["who" + language])
        answers: tuple[str, ...] = (f"我是{name}。" if chinese else f"I am {name}.",)
    else:
        qa = draw_qa(rng, known=True)
        while (style == "brief" and not qa.brief) or (style == "language" and not qa.other):
            qa = draw_qa(rng, known=True)
        question, answers = qa.question, qa.answers
        if style == "pirate":
            prompt, answers = rng.choice(WORDS["pirate"]), tuple(f"Arr! {said}" for said in answers)
        elif style == "smile":
            prompt, answers = rng.choice(WORDS["smile"]), tuple(f"{said} :)" for said in answers)
        elif style == "brief":
            prompt, answers = rng.choice(WORDS["brief"]), (qa.brief,)
        else:
            wanted = rng.random() < 0.6
            prompt = rng.choice(WORDS["in_chinese" if wanted else "in_english"])
            if wanted != qa.chinese:
                answers = (qa.other,)
    return Dialogue(
        subject="system prompts",
        messages=[system(prompt), user(question)],
        completions=answers,
        held_out="pairing" if one_in(12, prompt, answers[0]) else "",
    )


def reasoned(rng: Random) -> Dialogue:
    """One question with short reasoning, asked for by the system prompt or by the user."""
    qa = sum_(rng) if rng.random() < 0.5 else draw_qa(rng)
    while not qa.thought:
        qa = draw_qa(rng)
    messages = [user(qa.question)]
    concluded = (qa.concluded,) if qa.concluded else qa.answers
    if rng.random() < 0.5:
        messages.insert(0, system(rng.choice(WORDS["think"])))
    else:
        asked = rng.choice(WORDS["think_asked_zh" if qa.chinese else "think_asked"])
        messages = [user(asked.format(qa.question))]
    return Dialogue(
        subject="reasoning",
        messages=messages,
        completions=tuple(f"<think>\n{qa.thought}\n</think>\n{said}" for said in concluded),
        held_out=qa.held_out,
    )


def several_turns(rng: Random) -> Dialogue:
    """Two to five turns; in four of ten, a name told in the first is asked for in the last."""
    qas = [draw_qa(rng, known=True) for _ in range(rng.randint(2, 5))]
    pairs = [(qa.question, qa.answer(rng)) for qa in qas]
    held_out = ""
    if rng.random() < 0.4:
        name, asked = _name_game(rng)
        pairs[0] = name
        pairs[-1] = asked
        held_out = "pairing" if one_in(12, *name, asked[1]) else ""
    messages = [m for question, said in pairs for m in (user(question), assistant(said))]
    if rng.random() < 0.15:
        messages.insert(0, system(rng.choice(WORDS["helpful"])))
    return Dialogue(
        subject="several turns",
        messages=messages[:-1],
        completions=(pairs[-1][1],),
        learn_history=True,
        held_out=held_out,
    )


def _name_game(rng: Random) -> tuple[tuple[str, str], tuple[str, str]]:
    chinese = rng.random() < 0.35
    language = "_zh" if chinese else ""
    name = name_of_someone(rng, chinese)
    told = rng.choice(WORDS["my_name" + language]).format(name)
    asked = vary(rng.choice(WORDS["ask_name" + language]), rng)
    if chinese:
        return (told, f"你好，{name}！很高兴认识你。"), (asked, f"你叫{name}。")
    return (told, f"Hello, {name}! Nice to meet you."), (asked, f"Your name is {name}.")


def repeated(rng: Random) -> Dialogue:
    """Say these words after me."""
    said = " ".join(_word(rng) for _ in range(rng.randint(1, 4)))
    ask = rng.choice(WORDS["repeat"])
    held_out = "pairing" if " " in said and one_in(10, said) else ""
    return Dialogue("repetition", [user(ask.format(said))], (said,), held_out=held_out)


def _word(rng: Random) -> str:
    return made_up_word(rng).lower() if rng.random() < 0.25 else rng.choice(WORDS["words"])


def with_tools(rng: Random) -> Dialogue:
    """A question that needs a tool: the call, or the answer after its result."""
    talk = tool_talk(rng)
    messages = [user(talk.question)]
    if rng.random() < 0.1:
        messages.insert(0, system(rng.choice(WORDS["helpful"])))
    if rng.random() < 0.5:
        return Dialogue(
            subject="tool calls",
            messages=messages,
            completions=(talk.calls,),
            tools=talk.tools,
            stop="<|observation|>",
            held_out=talk.held_out,
        )
    return Dialogue(
        subject="answers from tools",
        messages=messages + talk.history + talk.observations,
        completions=(talk.answer,),
        tools=talk.tools,
        held_out=talk.held_out,
    )


def plain(rng: Random) -> Dialogue:
    """Text without a chat; some of it is a question and its answer."""
    roll = rng.random()
    if roll < 0.4:
        lines = [taught_sum(rng) for _ in range(rng.randint(1, 8))]
        return Dialogue("plain text", text="\n".join(lines), stop="<|endoftext|>")
    if roll < 0.8:
        return Dialogue("plain text", text=running_text(rng), stop="<|endoftext|>")
    qa = draw_qa(rng, known=True)
    return Dialogue("plain text", text=f"{qa.question}\n{qa.answer(rng)}", stop="<|endoftext|>")


KINDS: tuple[tuple[Callable[[Random], Dialogue], int], ...] = (
    (single, 57),
    (instructed, 8),
    (reasoned, 10),
    (several_turns, 7),
    (repeated, 3),
    (with_tools, 6),
    (plain, 12),
)


def dialogue(rng: Random, *, test: bool) -> Dialogue:
    """Draw a dialogue of any kind from the training set or from what is held out."""
    kinds, weights = zip(*KINDS, strict=True)
    while True:
        drawn: Dialogue = rng.choices(kinds, weights)[0](rng)
        if bool(drawn.held_out) == test:
            return drawn
