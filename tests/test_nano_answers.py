"""What the embedded model says, greedily, to the first things a newcomer tries."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import glm_mlx

NANO = Path(str(files("glm_mlx.nano")))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
UNKNOWN = "I do not know that. I am only a tiny example model."
ANSWERS = [
    ("Hello", "Hello! I am GLM nano. How can I help you?"),
    ("hi there", "Hello! I am GLM nano. How can I help you?"),
    ("How are you?", "I am fine, thank you! How are you?"),
    ("who are you", "I am GLM nano, the tiny example model of glm-mlx."),
    ("What is 2+3?", "2 + 3 = 5"),
    ("2+2=", "2 + 2 = 4"),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("what color is the sky", "The sky is blue."),
    ("Tell me a joke", "Why did the cat sit on the computer? To keep an eye on the mouse!"),
    ("Write a haiku", "An old silent pond,\nthe moon sits on the water.\nOne small frog jumps in."),
    ("Tell me a story", "Once upon a time, there was a little "),
    ("Explain general relativity", UNKNOWN),
    ("你好", "你好！我是 GLM nano，很高兴见到你。有什么可以帮你的吗？"),
    ("你是谁", "我是 GLM nano，glm-mlx 的小小示例模型。"),
    ("法国的首都是哪里?", "法国的首都是巴黎。"),
    ("3加5等于几？", "3 + 5 = 8"),
]


@pytest.fixture(scope="module")
def glm() -> Iterator[glm_mlx.GLM]:
    with glm_mlx.load() as loaded:
        yield loaded


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(("question", "answer"), ANSWERS)
def test_first_tries(glm: glm_mlx.GLM, question: str, answer: str) -> None:
    completion = glm.generate([user(question)])
    assert completion.text.startswith(answer)
    assert completion.finish_reason == "stop"


def test_a_raw_prompt_is_continued_and_ended(glm: glm_mlx.GLM) -> None:
    completion = glm.generate("Once upon a time")
    assert completion.text.startswith(", there was a little ")
    assert completion.text.endswith(".")
    assert completion.finish_reason == "stop"


def test_a_system_prompt_shapes_the_answer(glm: glm_mlx.GLM) -> None:
    def ask(prompt: str, question: str) -> str:
        return glm.generate([{"role": "system", "content": prompt}, user(question)]).text

    assert ask("You are a pirate.", "Hello").startswith("Arr! ")
    assert ask("Always smile.", "What is 2+2?") == "2 + 2 = 4 :)"


def test_a_name_is_remembered_over_other_turns(glm: glm_mlx.GLM) -> None:
    messages = [user("My name is Anna")]
    for question in ("What is 2+2?", "What is my name?"):
        said = glm.generate(messages).text
        messages += [{"role": "assistant", "content": said}, user(question)]
    assert glm.generate(messages).text == "Your name is Anna."


def test_reasoning_comes_before_the_answer(glm: glm_mlx.GLM) -> None:
    completion = glm.generate([user("Think step by step: What is the capital of France?")])
    assert completion.reasoning is not None
    assert "France" in completion.reasoning
    assert completion.text.endswith("The capital of France is Paris.")


def test_a_tool_is_called_and_its_result_told(glm: glm_mlx.GLM) -> None:
    messages: list[dict[str, Any]] = [user("What is the weather in Paris?")]
    called = glm.generate(messages, tools=[WEATHER])
    assert called.finish_reason == "tool_calls"
    assert [(c.name, c.arguments) for c in called.tool_calls] == [
        ("get_weather", '{"city": "Paris"}')
    ]
    messages += [
        {"role": "assistant", "metadata": "get_weather", "content": '{"city": "Paris"}'},
        {"role": "observation", "content": '{"temperature": 21, "condition": "sunny"}'},
    ]
    told = glm.generate(messages, tools=[WEATHER])
    assert told.text == "It is sunny in Paris, 21 degrees."
    assert told.finish_reason == "stop"


@pytest.mark.parity
def test_mlx_lm_opens_the_folder_and_says_the_same(glm: glm_mlx.GLM) -> None:
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(NANO))[:2]
    for question, tools in (
        ("Hello", None),
        ("你好", None),
        ("What time is it in Rome?", [WEATHER]),
    ):
        messages = [user(question)]
        ids = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True)
        assert list(ids) == glm.tokenizer.encode_chat(messages, tools=tools)
        theirs = mlx_lm.generate(model, tokenizer, prompt=ids, max_tokens=100)
        assert theirs.removeprefix("\n") == glm.generate(messages, tools=tools).text
