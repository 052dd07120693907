"""Small arithmetic with its working: + - x / on numbers up to 99, counting, comparing."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from qa import QA, one_in, vary, words

LIMIT = 99
WORDS = words("sums")
NUMBERS: dict[bool, list[str]] = {False: WORDS["numbers"], True: WORDS["numbers_zh"]}
SPOKEN = {
    "+": ("plus", "加"),
    "-": ("minus", "减"),
    "*": ("times", "乘"),
    "/": ("divided by", "除以"),
}
SUBJECTS = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}


def sum_(rng: Random) -> QA:
    """Draw a sum; one pair of larger numbers in ten is held out, and the last phrasings."""
    operator = rng.choices("+-*/", (10, 8, 4, 2))[0]
    a, b = _numbers(operator, rng)
    chinese = rng.random() < 0.3
    asks = [WORDS["ask_zh"]] if chinese else [WORDS["ask"], WORDS["ask_of"][operator]]
    ask = rng.choice([phrasing for phrasings in asks for phrasing in phrasings])
    held_out = ""
    if ask in [phrasings[-1] for phrasings in asks]:
        held_out = "phrasing"
    elif operator in "+-" and min(a, b) > 10 and a % 10 and b % 10:
        # Round numbers stay in training: workings pass through them. A pair goes with its mirror.
        held_out = "pairing" if one_in(10, operator, max(a, b), min(a, b)) else ""
    if not held_out and rng.random() < 0.03:
        return _too_big(operator, ask, chinese, rng)
    solution = solve(operator, a, b, chinese)
    in_the_head = solution.answer == solution.direct
    question = _typed(ask, operator, a, b, rng)
    return QA(
        subject=SUBJECTS[operator],
        question=question if held_out else vary(question, rng, opening="{e}=" not in ask),
        answers=(solution.answer,),
        chinese=chinese,
        brief=solution.brief if in_the_head else "",
        thought=solution.thought,
        concluded=solution.direct,
        other=solve(operator, a, b, not chinese).answer,
        held_out=held_out,
    )


def _numbers(operator: str, rng: Random) -> tuple[int, int]:
    if operator == "*":
        return rng.randint(0, 12), rng.randint(0, 12)
    if operator == "/":
        b, quotient = rng.randint(1, 12), rng.randint(0, 12)
        return b * quotient + (rng.randint(1, 5) if rng.random() < 0.15 else 0), b
    top = rng.choices((10, 20, LIMIT), (4, 2, 6))[0]
    a, b = rng.randint(0, top), rng.randint(0, top)
    return (max(a, b), min(a, b)) if operator == "-" and rng.random() < 0.8 else (a, b)


def _typed(ask: str, operator: str, a: int, b: int, rng: Random) -> str:
    sign = operator
    if operator in "*/" and rng.random() < 0.4:
        sign = rng.choice("x×" if operator == "*" else "÷÷:")
    gap = rng.choice(("", "", " "))
    spell = max(a, b) <= 20 and rng.random() < 0.4
    (a_en, b_en), (a_zh, b_zh) = (
        (NUMBERS[chinese][a], NUMBERS[chinese][b]) if spell else (a, b) for chinese in (False, True)
    )
    word, word_zh = SPOKEN[operator]
    question = ask.format(
        e=f"{a}{gap}{sign}{gap}{b}",
        s=f"{a_en} {word} {b_en}",
        z=f"{a_zh}{word_zh}{b_zh}",
        a=a_en,
        b=b_en,
    )
    return question.replace("=", " =") if gap else question


def taught_sum(rng: Random) -> str:
    """Draw a solved sum of the training set, as a line of its own."""
    while (qa := sum_(rng)).held_out or not qa.concluded:
        pass
    return qa.answers[0]


@dataclass(frozen=True)
class Solution:
    """A sum solved: the bare result, in one step, in the steps of the answer, in thought."""

    brief: str
    direct: str
    answer: str
    thought: str


def solve(operator: str, a: int, b: int, chinese: bool) -> Solution:
    """Solve a sum; two numbers of two digits go by way of the tens, as people do it."""
    if operator == "/" and a % b:
        uneven = WORDS["uneven_zh" if chinese else "uneven"]
        whole = a // b * b
        return Solution(uneven, uneven, uneven, f"{a // b} * {b} = {whole}. {a} - {whole} > 0.")
    result = a // b if operator == "/" else {"+": a + b, "-": a - b, "*": a * b}[operator]
    direct = f"{a} {operator} {b} = {result}"
    tens, ones = b // 10 * 10, b % 10
    if operator == "+" and min(a, b) > 9:
        tens, ones = tens + a // 10 * 10, ones + a % 10
        steps = f"{tens} + {ones}"
        thought = (
            f"{a // 10 * 10} + {b // 10 * 10} = {tens}. "
            f"{a % 10} + {b % 10} = {ones}. {tens} + {ones} = {result}."
        )
    elif operator == "-" and a >= b > 9:
        steps = f"{a - tens} - {ones}"
        thought = f"{a} - {tens} = {a - tens}. {a - tens} - {ones} = {result}."
    elif operator == "-" and b > a > 9:
        steps = f"-({b} - {a})"
        thought = f"{b} is bigger. {b} - {a} = {-result}."
    else:
        steps = ""
        thought = f"{result} * {b} = {a}." if operator == "/" else f"{direct}."
    answer = f"{a} {operator} {b} = {steps} = {result}" if steps else direct
    return Solution(str(result), direct, answer, thought)


def _too_big(operator: str, ask: str, chinese: bool, rng: Random) -> QA:
    big, other = rng.randint(100, 10 ** rng.randint(3, 6)), rng.randint(0, 10 ** rng.randint(1, 5))
    a, b = (big, other) if rng.random() < 0.5 else (other, big)
    return QA(
        subject=SUBJECTS[operator],
        question=vary(_typed(ask, operator, a, b, rng), rng, opening=False),
        answers=(WORDS["too_big_zh" if chinese else "too_big"],),
        chinese=chinese,
        thought="这个数太大了。" if chinese else "That number is too big.",
    )


def counting(rng: Random) -> QA:
    """Draw a question on the order of numbers: count, compare, the next and the one before."""
    kind = rng.choice(("count", "count", "compare", "next", "before"))
    chinese = rng.random() < 0.3
    a, b = rng.sample(range(LIMIT + 1), 2)
    held_out = "pairing" if one_in(10, kind, a, b) else ""
    if kind == "count":
        start = rng.choice((1, 1, 1, rng.randint(2, 50)))
        stop = start + rng.randint(2, 19)
        held_out = "pairing" if start > 1 and one_in(10, kind, start, stop) else ""
        brief = answer = ", ".join(map(str, range(start, stop + 1)))
        english = [f"Count from {start} to {stop}", f"Please count from {start} to {stop}."]
        if start == 1:
            english += [f"Count to {stop}", f"Can you count to {stop}?", f"Count up to {stop}"]
        question = rng.choice(
            [f"从{start}数到{stop}", f"请从{start}数到{stop}。"] if chinese else english
        )
    elif kind == "compare":
        large, small = max(a, b), min(a, b)
        brief = str(large)
        answer = f"{large}比{small}大。" if chinese else f"{large} is bigger than {small}."
        english = [f"Which is bigger, {a} or {b}?", f"What is larger, {a} or {b}?"]
        english += [f"Which number is bigger: {a} or {b}?", f"Is {a} bigger than {b}?"]
        question = rng.choice([f"{a}和{b}哪个大？", f"{a}大还是{b}大？"] if chinese else english)
    else:
        a = max(a, 1)
        held_out = "pairing" if a > 20 and one_in(10, kind, a) else ""
        result, word, zh = (a + 1, "after", "后面") if kind == "next" else (a - 1, "before", "前面")
        brief = str(result)
        answer = f"{a}{zh}是{result}。" if chinese else f"{result} comes {word} {a}."
        english = [f"What comes {word} {a}?", f"Which number comes {word} {a}?"]
        question = rng.choice([f"{a}{zh}是几？", f"{a}的{zh}是多少？"] if chinese else english)
    return QA(
        subject="counting",
        question=question if held_out else vary(question, rng),
        answers=(answer,),
        chinese=chinese,
        brief=brief,
        thought=answer if kind != "count" else "",
        held_out=held_out,
    )
