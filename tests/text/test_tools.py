"""Tool calls come out of a completion whole, in order, and only when they are calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_mlx.text.tools import ToolCall, parse_tool_calls

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": {}}},
    {"name": "now", "description": "a bare function"},
    {"type": "python"},
]
NEXT = "<|assistant|>"  # here it stands for the token
PRETTY = '{\n  "place": {\n    "city": "北京"\n  },\n  "days": [\n    1\n  ]\n}'


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ('get_weather\n{"city": "北京"}', "", [("get_weather", '{"city": "北京"}')]),
        ('get_weather \n{"city": "x"}\n', "", [("get_weather", '{"city": "x"}')]),
        (f"get_weather\n{PRETTY}", "", [("get_weather", PRETTY)]),
        ("now\n{}", "", [("now", "{}")]),
        ("now \n", "", [("now", "{}")]),
        ("now", "", [("now", "{}")]),
        ("now\n{}<|assistant|>now \n{}", "", [("now", "{}"), ("now", "{}")]),
        (
            '\nLet me look.\nget_weather\n{"city": "x"}<|assistant|>now\n{}',
            "Let me look.\n",
            [("get_weather", '{"city": "x"}'), ("now", "{}")],
        ),
        ("\nOne moment.<|assistant|>now\n{}", "One moment.", [("now", "{}")]),
        (
            '{"name": "now", "arguments": {"zone": "Asia"}}',
            "",
            [("now", '{"zone": "Asia"}')],
        ),
        ('python\n{"code": "1"}', "", [("python", '{"code": "1"}')]),
        # not calls
        ("\nIt is sunny.", "It is sunny.", []),
        ("\nnow", "now", []),
        ('launch\n{"at": 1}', 'launch\n{"at": 1}', []),
        ('get_weather\n{"city": ', 'get_weather\n{"city": ', []),
        ("get_weather\n[1]", "get_weather\n[1]", []),
        ('get_weather\n{"a": NaN}', 'get_weather\n{"a": NaN}', []),
        ("get_weather\n{} and more", "get_weather\n{} and more", []),
        ('{"name": "launch", "arguments": {}}', '{"name": "launch", "arguments": {}}', []),
        ('{"name": "now", "other": {}}', '{"name": "now", "other": {}}', []),
        ("python\nprint(1)", "python\nprint(1)", []),
        ("now\n{}<|assistant|>now\n{", "now\n{", [("now", "{}")]),
        ("get_weather\n" + '{"a":' * 5000, "get_weather\n" + '{"a":' * 5000, []),
        ("", "", []),
    ],
)
def test_forms(text: str, said: str, calls: list[tuple[str, str]]) -> None:
    assert parse_tool_calls(text.split(NEXT), TOOLS) == (
        said,
        tuple(ToolCall(*call) for call in calls),
    )


def test_without_a_list_any_identifier_is_a_name_and_prose_is_not() -> None:
    assert parse_tool_calls(['launch\n{"at": 1}'], None)[1] == (ToolCall("launch", '{"at": 1}'),)
    assert parse_tool_calls(['Here it is:\n{"at": 1}'], None) == ('Here it is:\n{"at": 1}', ())
    assert parse_tool_calls(["Yes"], None) == ("Yes", ())
    assert parse_tool_calls(["now\n{}"], []) == ("now\n{}", ())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    arguments=st.lists(st.dictionaries(st.text(), json_values, max_size=3), min_size=1, max_size=3),
    indent=st.sampled_from([None, 2, 4]),
)
def test_what_was_written_as_calls_is_read_as_calls(
    arguments: list[dict[str, Any]], indent: int | None
) -> None:
    bodies = [json.dumps(each, ensure_ascii=False, indent=indent) for each in arguments]
    if any("<|assistant|>" in body for body in bodies):
        return
    text = "<|assistant|>".join(f"get_weather \n{body}" for body in bodies)
    said, calls = parse_tool_calls(text.split(NEXT), TOOLS)
    assert said == ""
    assert [json.loads(call.arguments) for call in calls] == arguments


@settings(deadline=None)
@given(st.lists(st.sampled_from(["now", "\n", "{}", "{", '"', " ", "<|assistant|>", "天"])))
def test_no_character_is_lost(pieces: list[str]) -> None:
    text = "".join(pieces)
    said, calls = parse_tool_calls(text.split(NEXT), TOOLS)
    left = "".join([said, *(call.name + call.arguments for call in calls)])
    kept = text.replace("<|assistant|>", "")
    for character in '{"天':
        written_by_us = sum(call.arguments == "{}" for call in calls) if character == "{" else 0
        assert left.count(character) + written_by_us >= kept.count(character)
    assert left.count("now") >= kept.count("now")


def test_the_spelling_of_a_role_is_text_like_any_other() -> None:
    quoted = 'get_weather\n{"city": "a <|assistant|> b"}'
    assert parse_tool_calls([quoted], TOOLS)[1] == (
        ToolCall("get_weather", '{"city": "a <|assistant|> b"}'),
    )
    repeated = "You asked me to repeat:<|assistant|>now\n{}"
    assert parse_tool_calls([repeated], TOOLS) == (repeated, ())
