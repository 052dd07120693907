"""Each malformed message, tool or option is refused by name, before a template sees it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_mlx.errors import OptionError
from glm_mlx.text import Tokenizer

USER = {"role": "user", "content": "hi"}
CALL = {"function": {"name": "f", "arguments": "{}"}}


class Role(StrEnum):
    USER = "user"

    def __str__(self) -> str:
        return "<|user|>"


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty, expected at least one message"),
        ("hi", "messages is a str, expected a list"),
        (USER, "messages is a dict, expected a list"),
        (None, "messages is a NoneType, expected a list"),
        (iter([USER]), "messages is a list_iterator, expected a list"),
        ([USER, None], "messages[1] is a NoneType, expected an object"),
        (["hi"], "messages[0] is a str, expected an object"),
        ([{"content": "hi"}], "messages[0].role is None, expected one of system, user"),
        ([USER, {**USER, "role": "robot"}], "messages[1].role is 'robot', expected one of"),
        ([{**USER, "role": ["user"]}], "messages[0].role is ['user'], expected one of"),
        ([{"role": "user"}], "messages[0].content is None, expected a string"),
        ([{**USER, "content": 5}], "messages[0].content is 5, expected a string or a list"),
        ([{**USER, "content": b"hi"}], "messages[0].content is a bytes, expected JSON values"),
        ([{**USER, "content": ["hi"]}], "messages[0].content[0] is 'hi', expected {\"type\""),
        (
            [{**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0] is {'type': 'image_url'",
        ),
        ([{**USER, "content": "a\ud800"}], "messages[0].content holds the lone surrogate U+D800"),
        ([{**USER, "metadata": 1}], "messages[0].metadata is 1, expected a string"),
        ([{**USER, 5: 1}], "messages[0] is a int, expected a string"),
        ([{**USER, "extra": {1, 2}}], "messages[0].extra is a set, expected JSON values"),
        ([{**USER, "extra": nested(200)}], "nests deeper than 100 levels"),
        ([{**USER, "tool_calls": [CALL]}], "messages[0].tool_calls is [{'function'"),
        ([{"role": "assistant", "tool_calls": CALL}], "messages[0].tool_calls is {'function'"),
        (
            [{"role": "assistant", "tool_calls": [CALL, {"name": "f"}]}],
            "messages[0].tool_calls[1] is {'name': 'f'}, expected {\"function\"",
        ),
        ([{**USER, "tools": {}}], "messages[0].tools is a dict, expected a list"),
        ([{**USER, "tools": [{}]}], "messages[0].tools[0] is {}, expected"),
    ],
)
def test_messages_are_refused_by_name(tiny: Tokenizer, messages: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        tiny.encode_chat(messages)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.field is not None
    assert caught.value.field.startswith("messages")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("f", "tools is a str, expected a list"),
        ({"name": "f"}, "tools is a dict, expected a list"),
        ([None], "tools[0] is None, expected an object"),
        ([{"name": ""}], "tools[0] is {'name': ''}, expected"),
        ([{"type": "function"}], "tools[0] is {'type': 'function'}, expected"),
        ([{"type": "function", "function": {}}], "tools[0] is {'type': 'function', 'function'"),
        ([{"name": "f", "parameters": print}], "tools[0].parameters is a builtin_function"),
    ],
)
def test_tools_are_refused_by_name(tiny: Tokenizer, tools: Any, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        tiny.render([USER], tools=tools)
    assert message in str(caught.value)


def test_options_are_refused_by_name(tiny: Tokenizer) -> None:
    with pytest.raises(OptionError, match=r"template_options\.mood is a object"):
        tiny.render([USER], mood=object())


def test_what_is_accepted_besides_plain_strings(tiny: Tokenizer) -> None:
    expected = tiny.render([USER])
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    for message in ({**USER, "content": parts}, {**USER, "role": Role.USER}):
        assert tiny.render((message,)) == expected
        assert tiny.encode_chat((message,)) == tiny.encode_chat([USER])
    assert tiny.render([{"role": "assistant", "content": None}], add_generation_prompt=False) == (
        "[gMASK]<sop><|assistant|>\n"
    )


def test_the_caller_s_messages_are_left_alone(tiny: Tokenizer) -> None:
    tools = [{"name": "f"}]
    message = {"role": "assistant", "content": None, "tool_calls": [CALL], "tools": tools}
    tiny.encode_chat([message])
    assert message == {"role": "assistant", "content": None, "tool_calls": [CALL], "tools": tools}
    assert tools == [{"name": "f"}]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "tool_calls", "tools", "metadata", "function", "name", "type"]
            )
            | st.integers(),
            inner | st.sampled_from(["user", "assistant", "tool", "function", "text", "{}"]),
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(messages=st.lists(anything, max_size=3) | anything, tools=st.none() | anything)
def test_any_input_renders_or_is_refused(tiny: Tokenizer, messages: Any, tools: Any) -> None:
    try:
        prompt = tiny.render(messages, tools=tools)
    except OptionError:
        return
    assert prompt.startswith("[gMASK]<sop>")
