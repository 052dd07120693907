"""Requests that are wrong, through the whole program and a real model: prompts, limits, options.

The numbered list of bad inputs, continued; the number that begins a test's id is its kind. Here:
65 prompts that are no text, 66 the context exceeded, 67 sampling options, 68 stop strings, 69 logit
bias. In test_processes.py: 70 streams that close or are narrow, 71 signals.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from click.testing import Result
from makers.folders import FolderMaker

Run = Callable[..., Result]
Refused = Callable[..., str]
USAGE = 2
CONTEXT_TOKENS = 4096


@pytest.fixture(scope="module")
def model(make_folder: FolderMaker) -> str:
    return str(make_folder("glm4", max_position_embeddings=CONTEXT_TOKENS))


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "65-empty": (("-p", ""), "empty"),
    "65-whitespace": (("-p", " \t\n"), "empty"),
    "65-surrogates": (("-p", "a\udce4"), "not UTF-8 at byte 1"),
    "66-reply-too-long": (("-p", "Hi", "-m", str(CONTEXT_TOKENS)), "4096"),
    "67-max-tokens-zero": (("-p", "Hi", "-m", "0"), "--max-tokens"),
    "67-max-tokens-negative": (("-p", "Hi", "-m", "-5"), "--max-tokens"),
    "67-temperature-nan": (("-p", "Hi", "--temp", "nan"), "temperature"),
    "67-temperature-negative": (("-p", "Hi", "--temp", "-1"), "temperature"),
    "67-top-p-zero": (("-p", "Hi", "--top-p", "0"), "top_p"),
    "67-top-p-above-one": (("-p", "Hi", "--top-p", "1.01"), "top_p"),
    "67-seed": (("-p", "Hi", "--seed", str(2**64)), "seed"),
    "68-stop-empty": (("-p", "Hi", "--stop", ""), "stop"),
    "68-stop-long": (("-p", "Hi", "--stop", "x" * 257), "257 characters"),
    "68-stops": (("-p", "Hi", *(("--stop", "x") * 17)), "17 strings"),
    "69-bias-outside": (("-p", "Hi", "--logit-bias", "352=1"), "352"),
    "69-bias-negative-id": (("-p", "Hi", "--logit-bias", "-1=1"), "-1"),
    "69-bias-nan": (("-p", "Hi", "--logit-bias", "3=nan"), "nan"),
    "69-bias-list": (("-p", "Hi", "--logit-bias", "[1]"), "[1]"),
}


@pytest.mark.parametrize(("words", "named"), REFUSED.values(), ids=REFUSED)
def test_case(refused: Refused, model: str, words: tuple[str, ...], named: str) -> None:
    assert named in refused("generate", "--model", model, *words, code=USAGE)


def test_case_65_bytes_that_are_no_text(refused: Refused, model: str) -> None:
    line = refused("generate", "--model", model, input=b"Gr\xfc\xdfe", code=USAGE)
    assert "not UTF-8: byte 0xfc at position 2" in line


def test_case_65_ten_megabytes(refused: Refused, model: str) -> None:
    """A prompt far beyond any context is refused in numbers before it is cut into tokens."""
    line = refused("generate", "--model", model, input=b"word " * 2_000_000, code=USAGE)
    assert str(CONTEXT_TOKENS) in line.replace(",", "")


def test_case_66_in_numbers(refused: Refused, model: str) -> None:
    line = refused("generate", "--model", model, input=b"word " * 2000, code=USAGE)
    prompt, reply, context = (int(number) for number in re.findall(r"\d+", line.replace(",", "")))
    assert prompt > 4000
    assert (reply, context) == (512, CONTEXT_TOKENS)


def test_case_67_a_large_top_k_is_all_there_is(run: Run, model: str) -> None:
    words = "generate", "--model", model, "-p", "Hi", "-m", "9", "--seed", "3", "--top-k"
    assert run(*words, "1000000").stdout == run(*words, "0").stdout
