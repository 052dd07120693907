"""Two tools in GLM's format: schemas as people write them, questions, results, final answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from facts import TABLES
from qa import made_up_word, one_in, vary, words

Message = dict[str, str]

WORDS = words("tools")
KINDS = ("get_weather", "get_time")
CITIES = [(row[1], row[3]) for row in TABLES["capitals"]] + WORDS["more_cities"]


@dataclass(frozen=True)
class ToolTalk:
    """One exchange with tools: what is offered, what is asked, the call, its result, the answer.

    `calls` is the completion that the model writes (`name\\n{json}`), `history` the same turn as
    messages; `observations` follow it, one a call.
    """

    tools: list[dict[str, object]]
    question: str
    calls: str
    history: list[Message]
    observations: list[Message]
    answer: str
    chinese: bool
    held_out: str


def schema(kind: str, rng: Random, *, name: str = "", parameter: str = "city") -> dict[str, object]:
    """Write the schema of a tool as OpenAI clients spell it, in more or less detail."""
    plain = rng.random() < 0.5
    argument = {"type": "string"}
    if rng.random() < 0.5:
        argument["description"] = rng.choice(WORDS["city_descriptions"])
    properties: dict[str, object] = {parameter: argument}
    if kind == "get_weather" and rng.random() < 0.15:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    parameters: dict[str, object] = {"type": "object", "properties": properties}
    if plain or rng.random() < 0.7:
        parameters["required"] = [parameter]
    function: dict[str, object] = {"name": name or kind}
    if plain or rng.random() < 0.8:
        function["description"] = rng.choice(WORDS[kind]["description"])
    function["parameters"] = parameters
    return {"type": "function", "function": function}


def tool_talk(rng: Random) -> ToolTalk:
    """Draw an exchange about one city, now and then about two; one pairing in ten is held out."""
    kind, idle = rng.choice((KINDS, KINDS, KINDS[::-1]))
    name = kind if rng.random() < 0.8 else rng.choice(WORDS[kind]["other_names"])
    chinese = rng.random() < 0.35
    asks = WORDS[kind]["ask_zh" if chinese else "ask"]
    places = [pair[chinese] for pair in rng.sample(CITIES, 2 if rng.random() < 0.12 else 1)]
    made_up = not chinese and rng.random() < 0.15
    if made_up:
        places = [made_up_word(rng)]
    index = rng.randrange(len(asks))
    held_out = "phrasing" if index == len(asks) - 1 else ""
    if not held_out and one_in(10, kind, index, *places):
        held_out = "pairing"
    question = asks[index].format(("和" if chinese else " and ").join(places))
    parameter = "location" if rng.random() < 0.25 else "city"
    tools = [schema(kind, rng, name=name, parameter=parameter)]
    if rng.random() < 0.4:
        tools.insert(rng.randint(0, 1), schema(idle, rng, parameter=parameter))
    calls = [json.dumps({parameter: place}, ensure_ascii=False) for place in places]
    results = [_result(kind, place, chinese, rng) for place in places]
    return ToolTalk(
        tools=tools,
        question=question if held_out or made_up else vary(question, rng),
        calls="<|assistant|>".join(f"{name}\n{call}" for call in calls),
        history=[{"role": "assistant", "metadata": name, "content": call} for call in calls],
        observations=[{"role": "observation", "content": seen} for seen, _ in results],
        answer=("" if chinese else " ").join(said for _, said in results),
        chinese=chinese,
        held_out=held_out,
    )


def _result(kind: str, place: str, chinese: bool, rng: Random) -> tuple[str, str]:
    """Return what the tool says and the sentence made of it."""
    if kind == "get_time":
        clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
        seen = rng.choice((clock, json.dumps({"time": clock}), f"It is {clock}"))
        return seen, f"{place}现在是{clock}。" if chinese else f"It is {clock} in {place}."
    sky, sky_zh = rng.choice(WORDS["skies"])
    degrees = rng.randint(-20, 40)
    word = sky_zh if chinese and rng.random() < 0.6 else sky
    if rng.random() < 0.25:
        seen = rng.choice((word, json.dumps({"condition": word}, ensure_ascii=False)))
        return seen, f"{place}今天{sky_zh}。" if chinese else f"It is {sky} in {place}."
    keys = rng.choice((("temperature", "condition"), ("temperature", "weather"), ("temp", "sky")))
    record: dict[str, object] = {keys[0]: degrees, keys[1]: word}
    if rng.random() < 0.3:
        record = {keys[1]: word, keys[0]: degrees}
    if rng.random() < 0.2:
        record = {"city": place, **record}
    seen = rng.choice(
        (
            json.dumps(record, ensure_ascii=False),
            json.dumps(record, ensure_ascii=False),
            f"{word}, {degrees} degrees",
            f"{degrees}°C, {word}",
            f"{word} {degrees}°C",
        )
    )
    if chinese:
        return seen, f"{place}今天{sky_zh}，{degrees}度。"
    return seen, f"It is {sky} in {place}, {degrees} degrees."
