"""Conversations as callers write them -> messages as GLM's templates expect them.

Checks every value and names the one at fault; knows no template and no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glm_mlx.errors import OptionError

Message = dict[str, Any]
Tool = dict[str, Any]

ROLES = ("system", "user", "assistant", "observation", "tool", "function")
_DEPTH = 100


def plain(value: object, field: str, depth: int = 0) -> Any:
    """Return `value` rebuilt from plain JSON types.

    Raises:
        OptionError: it holds another type, a lone surrogate, or nests too deeply.
    """
    if depth > _DEPTH:
        raise OptionError(f"nests deeper than {_DEPTH} levels", field=field)
    match value:
        case str():
            return check_text(value, field)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {
                check_text(key, field): plain(item, f"{field}.{key}", depth + 1)
                for key, item in value.items()
            }
        case list() | tuple():
            return [plain(item, f"{field}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise OptionError(f"{field} is a {type(value).__name__}, expected JSON values", field=field)


def check_text(text: object, field: str) -> str:
    """Return `text` if it is a string that UTF-8 can spell.

    Raises:
        OptionError: it is not a string, or holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise OptionError(f"{field} is a {type(text).__name__}, expected a string", field=field)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(
            f"{field} holds the lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}, which is no text; decode the input with errors='replace'",
            field=field,
        ) from None
    return str.__str__(text)  # a subclass may spell itself differently


def check_messages(messages: object) -> list[Message]:
    """Return the messages with `content` as one string and tools in OpenAI's form.

    Raises:
        OptionError: naming the message and the key at fault.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise OptionError(
            f'messages is a {type(messages).__name__}, expected a list of {{"role", "content"}}',
            field="messages",
        )
    if not messages:
        raise OptionError("messages is empty, expected at least one message", field="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def check_tools(tools: object, field: str = "tools") -> list[Tool]:
    """Return the tools as `{"type": "function", "function": {...}}`, built-in ones untouched.

    Raises:
        OptionError: naming the tool and the key at fault.
    """
    if tools is None:
        return []
    if not isinstance(tools, list | tuple):
        raise OptionError(f"{field} is a {type(tools).__name__}, expected a list", field=field)
    return [_tool(tool, f"{field}[{i}]") for i, tool in enumerate(tools)]


def in_glm_roles(messages: Sequence[Message]) -> list[Message]:
    """Spell OpenAI's tool turns as GLM's templates want them.

    Each tool call becomes an assistant message of its own, with the tool's name as `metadata` and
    its arguments as content; what a tool returned becomes an observation.
    """
    turns: list[Message] = []
    for message in messages:
        turn = {key: value for key, value in message.items() if key != "tool_calls"}
        calls = message.get("tool_calls") or []
        if turn["role"] in ("tool", "function"):
            turn["role"] = "observation"
        if turn["content"] or not calls:
            turns.append(turn)
        turns += [
            {"role": turn["role"], "metadata": call["name"], "content": call["arguments"]}
            for call in (call["function"] for call in calls)
        ]
    return turns


def _message(value: object, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise OptionError(f"{field} is a {type(value).__name__}, expected an object", field=field)
    message: Message = plain(value, field)
    if message.get("role") not in ROLES:
        raise _wrong(f"{field}.role", message.get("role"), f"one of {', '.join(ROLES)}")
    if "content" not in message and not message.get("tool_calls"):
        raise _wrong(f"{field}.content", None, "a string")
    message["content"] = _content(message.get("content"), f"{field}.content")
    if not isinstance(message.get("metadata", ""), str):
        raise _wrong(f"{field}.metadata", message["metadata"], "a string")
    if "tools" in message:
        message["tools"] = check_tools(message["tools"], f"{field}.tools")
    if message.get("tool_calls"):
        if message["role"] != "assistant" or not isinstance(message["tool_calls"], list):
            raise _wrong(f"{field}.tool_calls", message["tool_calls"], "a list, on the assistant")
        message["tool_calls"] = [
            _call(call, f"{field}.tool_calls[{i}]") for i, call in enumerate(message["tool_calls"])
        ]
    return message


def _content(content: object, field: str) -> str:
    match content:
        case None:
            return ""
        case str():
            return content
        case list():
            return "".join(_part(part, f"{field}[{i}]") for i, part in enumerate(content))
    raise _wrong(field, content, "a string or a list of text parts")


def _part(part: object, field: str) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
    raise _wrong(field, part, '{"type": "text", "text": ...}')


def _call(call: object, field: str) -> dict[str, Any]:
    match call:
        case {"function": {"name": str(name), "arguments": str() | dict() as arguments}} if name:
            if isinstance(arguments, dict):
                arguments = json.dumps(arguments, ensure_ascii=False)
            return {"type": "function", "function": {"name": name, "arguments": arguments}}
    raise _wrong(field, call, '{"function": {"name": ..., "arguments": ...}}')


def _tool(tool: object, field: str) -> Tool:
    if not isinstance(tool, Mapping):
        raise _wrong(field, tool, "an object")
    checked: Tool = plain(tool, field)
    match checked:
        case {"type": "function", "function": {"name": str(name)}} if name:
            return checked
        case {"name": str(name)} if name and "function" not in checked:
            return {"type": "function", "function": checked}
        case {"type": str(kind)} if kind != "function":
            return checked
    raise _wrong(field, tool, '{"type": "function", "function": {"name": ..., ...}}')


def _wrong(field: str, found: object, expected: str) -> OptionError:
    shown = repr(found)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return OptionError(f"{field} is {shown}, expected {expected}", field=field)
