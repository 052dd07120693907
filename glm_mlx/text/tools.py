"""Tool calls in a completion -> values; knows GLM's text forms, no tokens and no model."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

_NAME_THEN_OBJECT = re.compile(r"^(.+)\n\s*(?=\{)", re.MULTILINE)
_NAME = re.compile(r"[\w.:-]+")


@dataclass(frozen=True)
class ToolCall:
    """A function the model wants called.

    Attributes:
        name: of the function.
        arguments: a JSON object, as text.
    """

    name: str
    arguments: str


def parse_tool_calls(
    turns: Iterable[str], tools: Iterable[Mapping[str, Any]] | None
) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a completion into what it says and what it calls.

    A call is a turn `name`, newline, JSON object, or GLM-Z1-Rumination's one object with `name`
    and `arguments`. Text before the name, and all that is not quite a call, stays in what the
    completion says: nothing is lost.

    Args:
        turns: the completion, cut where the model wrote the token `<|assistant|>`, which parts
            several calls. The token, not its spelling: a model may quote that in a reply.
        tools: the functions offered; no other name is a call. None: any name is.
    """
    names = None if tools is None else {_name_of(tool) for tool in tools}
    said: list[str] = []
    calls: list[ToolCall] = []
    for turn in turns:
        before, call = _parse_turn(turn, names)
        if before.strip():
            said.append(before.removeprefix("\n"))
        if call is not None:
            calls.append(call)
    return "\n".join(said), tuple(calls)


def _parse_turn(turn: str, names: Collection[str] | None) -> tuple[str, ToolCall | None]:
    for match in _NAME_THEN_OBJECT.finditer(turn):
        name = match[1].strip()
        if _offered(name, names) and _object(turn[match.end() :]) is not None:
            return turn[: match.start()], ToolCall(name, turn[match.end() :].strip())
    whole = _object(turn.strip())
    if whole is not None and whole.keys() == {"name", "arguments"}:
        name, arguments = whole["name"], whole["arguments"]
        if isinstance(name, str) and isinstance(arguments, dict) and _offered(name, names):
            return "", ToolCall(name, json.dumps(arguments, ensure_ascii=False))
    # An answer opens with a newline; a bare name right behind the role is a call.
    if names is not None and turn.strip() in names and not turn.startswith("\n"):
        return "", ToolCall(turn.strip(), "{}")
    return turn, None


def _offered(name: str, names: Collection[str] | None) -> bool:
    return name in names if names is not None else _NAME.fullmatch(name) is not None


def _object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that `text` consists of, if it does."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _name_of(tool: Mapping[str, Any]) -> str:
    return str(tool.get("function", tool).get("name", tool.get("type")))  # built-in ones: a type
