"""`generate`: what is asked of the model, and what reaches stdout in each form."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_the_reply_alone_is_on_stdout(run: Run, fake_glm: Any) -> None:
    result = run("generate", "--prompt", "Hi")
    assert result.exit_code == 0
    assert result.stdout == "Hello there\n"
    assert result.stderr.splitlines() == [
        "glm-mlx: note: no --model given, so this is the tiny embedded one"
    ]
    assert fake_glm.closed


@pytest.mark.parametrize("says", [("a", "\n"), ("a\n\nb\n",)])
def test_a_line_that_ends_is_not_ended_twice(run: Run, fake_glm: Any, says: tuple[str]) -> None:
    fake_glm.says = says
    assert run("generate", "-p", "Hi").stdout == "".join(says)


def test_nothing_said_is_nothing_printed(run: Run, fake_glm: Any) -> None:
    fake_glm.says = ()
    assert run("generate", "-p", "Hi").stdout == ""


def test_without_options_the_model_decides(run: Run, fake_glm: Any) -> None:
    run("generate", "-p", "Hi")
    [(messages, options)] = fake_glm.asked
    assert messages == [{"role": "user", "content": "Hi"}]
    assert options.keys() == {"cancel", "on_prefill", "max_tokens"}
    assert options["max_tokens"] == 512


def test_every_option_reaches_the_model(run: Run, fake_glm: Any, tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([TOOL]))
    given = {
        "--system-prompt": "S",
        "--max-tokens": "5",
        "--temp": "0",
        "--top-p": "0.5",
        "--top-k": "0",
        "--min-p": "0.1",
        "--seed": "0",
        "--repetition-penalty": "1.1",
        "--presence-penalty": "0.2",
        "--frequency-penalty": "0.3",
        "--prefill-step-size": "64",
        "--tools": str(tools),
        "--chat-template-config": '{"enable_thinking": false}',
        "--revision": "r",
        "--rope-theta": "5e6",
        "--yarn": "4",
    }
    flat = [word for pair in given.items() for word in pair]
    twice = ["--stop", "a\\n", "--stop", "b", "--logit-bias", "1=2", "--logit-bias", "3=-4.5"]
    result = run("generate", "--model", "m", "-p", "a\\nb", "--trust-config", *flat, *twice)
    assert result.exit_code == 0, result.stderr
    [(messages, options)] = fake_glm.asked
    assert messages == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a\\nb"},
    ]
    del options["cancel"], options["on_prefill"]
    assert options == {
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 0,
        "min_p": 0.1,
        "seed": 0,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "prefill_step_size": 64,
        "stop": ("a\\n", "b"),
        "logit_bias": {1: 2.0, 3: -4.5},
        "tools": [TOOL],
        "template_options": {"enable_thinking": False},
    }
    choice = fake_glm.choice
    assert (choice.name, choice.revision, choice.trust_config) == ("m", "r", True)
    assert choice.rope == {"rope_theta": 5e6, "rope_type": "yarn", "factor": 4.0}


def test_raw_text_is_left_alone(run: Run, fake_glm: Any) -> None:
    result = run("generate", "--model", "m", "--ignore-chat-template", input=b" \t\n\n")
    assert (result.exit_code, result.stderr) == (0, "")
    assert fake_glm.asked[0][0] == " \t\n"


def test_a_base_model_completes(run: Run, fake_glm: Any) -> None:
    fake_glm.has_chat_template = False
    result = run("generate", "--model", "m", "-p", "Once")
    assert result.exit_code == 0
    assert fake_glm.asked[0][0] == "Once"
    assert run("generate", "-p", "Once", "--system-prompt", "S").exit_code == 2


@pytest.mark.parametrize("words", [("-p", "-"), ()])
def test_a_pipe_is_a_prompt(run: Run, fake_glm: Any, words: tuple[str, ...]) -> None:
    run("generate", *words, input="你好\n\n".encode())
    assert fake_glm.asked[0][0][-1]["content"] == "你好\n"


def test_a_prompt_goes_before_a_pipe(run: Run, fake_glm: Any) -> None:
    run("generate", "-p", "Hi", input=b"ignored")
    assert fake_glm.asked[0][0][-1]["content"] == "Hi"


def test_json_is_one_object(run: Run, fake_glm: Any) -> None:
    fake_glm.says = ("你", "好\n")
    result = run("generate", "-p", "Hi", "--json", "--model", "m")
    assert json.loads(result.stdout) == {
        "text": "你好\n",
        "token_ids": [0, 1],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "cached_tokens": 3},
        "timings": {
            "prefill_tokens": 4,
            "prefill_seconds": 0.5,
            "decode_tokens": 2,
            "decode_seconds": 2.0,
        },
        "reasoning": None,
        "tool_calls": [],
        "seed": 11,
    }
    assert "你好" in result.stdout


def test_json_lines_stream(run: Run, fake_glm: Any) -> None:
    lines = run("generate", "-p", "Hi", "--json", "--stream").stdout.splitlines()
    pieces = [json.loads(line) for line in lines]
    assert [piece["text"] for piece in pieces] == ["Hello", " there", ""]
    assert [piece["finish_reason"] for piece in pieces] == [None, None, "stop"]
    assert pieces[-1]["usage"]["prompt_tokens"] == 7


def test_text_can_wait_for_the_end(run: Run, fake_glm: Any) -> None:
    fake_glm.says = ("said", " and thrown away")
    fake_glm.before_piece = lambda number: 1 / (1 - number)
    assert run("generate", "-p", "Hi", "--no-stream").stdout == ""
    assert run("generate", "-p", "Hi").stdout == "said"


def test_figures_are_for_those_who_ask(run: Run, fake_glm: Any) -> None:
    result = run("generate", "--model", "m", "-p", "Hi", "--verbose")
    assert result.stdout == "Hello there\n"
    assert result.stderr == (
        "glm-mlx: figures: prompt 7 tokens (3 cached), 8.0 tokens/s; reply 2 tokens, 1.0 tokens/s\n"
    )


@pytest.mark.parametrize("form", [(), ("--no-stream",), ("--json",), ("--json", "--stream")])
def test_ctrl_c_keeps_what_was_said(run: Run, fake_glm: Any, form: tuple[str, ...]) -> None:
    def interrupt(number: int) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)

    fake_glm.before_piece = interrupt
    result = run("generate", "-p", "Hi", *form)
    assert result.exit_code == 130
    assert "Hello" in result.stdout
    assert "there" not in result.stdout
    assert result.stdout.endswith("\n")
    assert fake_glm.closed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_leaves(run: Run, fake_glm: Any) -> None:
    def interrupt(number: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one did not end it")

    fake_glm.before_piece = interrupt
    result = run("generate", "-p", "Hi")
    assert (result.exit_code, result.stdout) == (130, "")
    assert fake_glm.closed


REFUSED: dict[str, tuple[str, ...]] = {
    "temp nan": ("--temp", "nan"),
    "temp negative": ("--temp", "-1"),
    "top-p zero": ("--top-p", "0"),
    "top-p above one": ("--top-p", "1.5"),
    "top-k negative": ("--top-k", "-1"),
    "min-p": ("--min-p", "2"),
    "seed": ("--seed", str(2**64)),
    "penalty": ("--repetition-penalty", "0"),
    "max-tokens zero": ("-m", "0"),
    "max-tokens negative": ("-m", "-5"),
    "step": ("--prefill-step-size", "0"),
    "stop empty": ("--stop", ""),
    "stop long": ("--stop", "x" * 257),
    "stops": ("--stop", "x") * 17,
    "bias word": ("--logit-bias", "a=1"),
    "bias without value": ("--logit-bias", "5"),
    "bias nan": ("--logit-bias", "5=nan"),
    "surrogate in stop": ("--stop", "\udcff"),
    "surrogate in system prompt": ("--system-prompt", "\udcff"),
    "template options": ("--chat-template-config", "{"),
    "template options list": ("--chat-template-config", "[]"),
    "template options deep": ("--chat-template-config", "[" * 100_000),
    "raw with system": ("--ignore-chat-template", "--system-prompt", "S"),
    "revision of nothing": ("--revision", "main"),
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_bad_options_are_refused_before_the_model_loads(
    run: Run, fake_glm: Any, options: tuple[str, ...]
) -> None:
    result = run("generate", "-p", "Hi", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("glm-mlx: error: ")
    assert result.stderr.count("\n") == 1
    assert fake_glm.choice is None


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "file not found\n"),
        ("{", "not JSON: "),
        ('{"type": "function"}', "must hold a JSON list"),
    ],
)
def test_bad_tools_name_their_file(
    run: Run, fake_glm: Any, tmp_path: Path, content: str | None, found: str
) -> None:
    file = tmp_path / "tools.json"
    if content is not None:
        file.write_text(content)
    result = run("generate", "-p", "Hi", "--tools", str(file))
    assert result.exit_code == 3
    assert f"{file}: {found}" in result.stderr
    assert fake_glm.choice is None


def test_nothing_to_say_is_refused(run: Run, fake_glm: Any) -> None:
    for words, piped in [(("-p", ""), b""), (("-p", " \n"), b""), ((), b""), (("-p", "-"), b"\n")]:
        result = run("generate", *words, input=piped)
        assert result.exit_code == 2
        assert result.stderr == "glm-mlx: error: the prompt is empty\n"
    assert run("generate", "--ignore-chat-template", "-p", "").exit_code == 2
    assert fake_glm.choice is None


def test_bytes_that_are_no_text_are_placed(run: Run, fake_glm: Any) -> None:
    result = run("generate", input="你".encode() + b"\xff!")
    assert result.exit_code == 2
    assert "not UTF-8: byte 0xff at position 3" in result.stderr
    result = run("generate", "-p", "你\udcff")
    assert result.exit_code == 2
    assert "not UTF-8 at byte 3" in result.stderr
    assert fake_glm.choice is None


def test_an_endless_pipe_is_cut(run: Run, fake_glm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm_mlx.cli.stdin._LIMIT_BYTES", 10)
    assert run("generate", input=b"x" * 10).exit_code == 0
    result = run("generate", input=b"x" * 11)
    assert result.exit_code == 2
    assert "more than 10 bytes" in result.stderr
