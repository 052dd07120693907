"""`chat`: a script on stdin holds a conversation; a person's slips are forgiven on a terminal."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from glm_mlx.errors import ContextLengthError

Run = Callable[..., Result]


def contents(fake_glm: Any) -> list[list[str]]:
    """What each request was made of."""
    return [[message["content"] for message in messages] for messages, _ in fake_glm.asked]


def echo(messages: Any) -> tuple[str, ...]:
    return (f"re: {messages[-1]['content']}",)


def test_turns_add_up(run: Run, fake_glm: Any) -> None:
    fake_glm.says = echo
    result = run("chat", "--system-prompt", "S", input="one\n\n  \n二\n".encode())
    assert result.exit_code == 0
    assert result.stdout == "re: one\nre: 二\n"
    assert contents(fake_glm) == [["S", "one"], ["S", "one", "re: one", "二"]]
    roles = [message["role"] for message in fake_glm.asked[1][0]]
    assert roles == ["system", "user", "assistant", "user"]
    assert fake_glm.asked[0][1]["max_tokens"] is None
    caches = {id(options["cache"]) for _, options in fake_glm.asked}
    assert len(caches) == 1
    assert fake_glm.closed


@pytest.mark.parametrize(
    ("lines", "entries"),
    [
        ("a\\\nb\\\nc\nd\n", ["a\nb\nc", "d"]),
        ('"""a\nb\n"""\nc', ["a\nb", "c"]),
        ('"""\n a\n\nb\n"""\n', [" a\n\nb"]),
        ('"""one line"""\nx\n', ["one line", "x"]),
        ('"""never closed\nb', ["never closed\nb"]),
        ("goes on\\", ["goes on"]),
        ("windows\r\nline\r\n", ["windows", "line"]),
    ],
)
def test_entries_of_several_lines(run: Run, fake_glm: Any, lines: str, entries: list[str]) -> None:
    assert run("chat", input=lines.encode()).exit_code == 0
    assert [each[-1] for each in contents(fake_glm)] == entries


def test_clear_keeps_the_system_prompt(run: Run, fake_glm: Any) -> None:
    run("chat", input=b"/system S\na\n/clear\nb\n/system\nc\n/exit\nnever\n")
    assert contents(fake_glm) == [["S", "a"], ["S", "b"], ["b", "Hello there", "c"]]
    first, second, third = (options["cache"] for _, options in fake_glm.asked)
    assert first is not second
    assert second is third


def test_save_and_load_go_on(run: Run, fake_glm: Any, tmp_path: Path) -> None:
    file = tmp_path / "a talk.json"
    run("chat", "--model", "m", input=f"/system S\na\n/save {file}\n/save {file}\n".encode())
    saved = json.loads(file.read_text())
    assert saved["model"] == "m"
    assert [each["content"] for each in saved["messages"]] == ["S", "a", "Hello there"]
    assert [path.name for path in tmp_path.iterdir()] == ["a talk.json"]
    result = run("chat", "--model", "m", input=f"/load {file}\nb\n".encode())
    assert result.stderr == f"glm-mlx: note: loaded 2 messages from {file}\n"
    assert contents(fake_glm)[-1] == ["S", "a", "Hello there", "b"]


def test_ctrl_c_stops_the_reply_and_keeps_the_session(run: Run, fake_glm: Any) -> None:
    def interrupt(number: int) -> None:
        if number == 1 and len(fake_glm.asked) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    fake_glm.before_piece = interrupt
    result = run("chat", input=b"a\nb\n")
    assert result.exit_code == 0
    assert result.stdout == "Hello\nHello there\n"
    assert contents(fake_glm)[1] == ["a", "Hello", "b"]


def test_a_turn_without_a_word_is_forgotten(run: Run, fake_glm: Any) -> None:
    fake_glm.says = lambda messages: () if messages[-1]["content"] == "a" else ("x",)
    result = run("chat", "--model", "m", input=b"a\nb\n")
    assert "turn is forgotten" in result.stderr
    assert contents(fake_glm) == [["a"], ["b"]]


def test_figures_on_request(run: Run, fake_glm: Any) -> None:
    result = run("chat", "--model", "m", "--verbose", input=b"a\n")
    assert result.stderr.startswith("glm-mlx: figures: prompt 7 tokens")


def test_help_names_every_command(run: Run, fake_glm: Any) -> None:
    result = run("chat", input=b"/help\n")
    assert result.stdout == ""
    for name in ("/help", "/clear", "/system", "/save", "/load", "/exit", "Ctrl-C"):
        assert name in result.stderr


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/what now", "no command /what"),
        ("/save", "give a file name"),
        ("/load", "give a file name"),
        ("\udcff", "not UTF-8: byte 0xff at position 0"),
    ],
)
def test_a_script_ends_at_its_first_error(run: Run, fake_glm: Any, line: str, found: str) -> None:
    said = f"{line}\nnever said\n".encode("utf-8", "surrogateescape")
    result = run("chat", "--model", "m", input=said)
    assert result.exit_code == 2
    assert found in result.stderr
    assert fake_glm.asked == []


def test_a_failed_turn_ends_a_script_with_its_code(run: Run, fake_glm: Any) -> None:
    def fail(number: int) -> None:
        raise ContextLengthError("9 tokens do not fit")

    fake_glm.before_piece = fail
    result = run("chat", "--model", "m", input=b"a\nb\n")
    assert (result.exit_code, len(fake_glm.asked)) == (2, 1)
    assert fake_glm.closed


def test_a_full_conversation_leads_to_clear(run: Run, fake_glm: Any) -> None:
    """Which forgets turns, so it is no advice while there are none."""

    def fail(number: int) -> None:
        raise ContextLengthError("9 tokens do not fit; shorten the prompt")

    fake_glm.before_piece = fail
    assert "/clear" not in run("chat", "--model", "m", input=b"a\n").stderr
    fake_glm.before_piece = lambda number: len(fake_glm.asked) < 3 or fail(number)
    result = run("chat", "--model", "m", input=b"a\nb\n")
    assert result.exit_code == 2
    assert result.stderr.endswith("shorten the prompt (or forget the conversation with /clear)\n")


def test_a_base_model_cannot_chat(run: Run, fake_glm: Any) -> None:
    fake_glm.has_chat_template = False
    result = run("chat", "--model", "m", input=b"a\n")
    assert result.exit_code == 2
    assert "m has no chat template" in result.stderr
    assert fake_glm.closed
