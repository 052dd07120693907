"""The script behind the embedded model: its corpus holds out what it says, its folder loads."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

import glm_mlx

SCRIPTS = Path(__file__).parents[1] / "examples" / "train_nano"


@pytest.fixture(scope="module")
def corpus() -> Iterator[ModuleType]:
    """The corpus module, imported as the scripts import each other: by their folder."""
    before = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield import_module("corpus")
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SCRIPTS)):
                del sys.modules[name]


def draw(corpus: ModuleType, count: int, seed: int, *, test: bool) -> list[Any]:
    rng = Random(seed)
    return [corpus.dialogue(rng, test=test) for _ in range(count)]


def everything_said(dialogue: Any) -> str:
    said = [message["content"] for message in dialogue.messages]
    return "\n".join([*said, *dialogue.completions, dialogue.text])


def test_the_same_seed_draws_the_same_dialogues(corpus: ModuleType) -> None:
    assert draw(corpus, 200, 1, test=False) == draw(corpus, 200, 1, test=False)
    assert draw(corpus, 200, 1, test=False) != draw(corpus, 200, 2, test=False)


def test_no_sum_of_the_test_is_ever_solved_in_training(corpus: ModuleType) -> None:
    held_out = {
        dialogue.completions[0].split(" =")[0]
        for dialogue in draw(corpus, 3000, 1, test=True)
        if dialogue.subject in ("addition", "subtraction") and dialogue.held_out == "pairing"
    }
    solved = set[str]()
    for dialogue in draw(corpus, 8_000, 2, test=False):
        solved |= set(re.findall(r"(?<!\d)\d+ [+-] \d+(?=\)? =)", everything_said(dialogue)))
    assert len(held_out) > 50
    assert len(solved) > 2000
    assert not held_out & solved


def test_no_question_of_the_test_is_asked_in_training(corpus: ModuleType) -> None:
    def asked(dialogue: Any) -> tuple[str, ...]:
        # The whole prompt: a held-out system prompt or name is new only beside its question.
        return tuple(message["content"].rstrip("?.!。？！ ") for message in dialogue.messages)

    held_out = {asked(dialogue) for dialogue in draw(corpus, 3000, 1, test=True)}
    trained = {asked(dialogue) for dialogue in draw(corpus, 8_000, 2, test=False)}
    assert not held_out & trained


@pytest.mark.parity
def test_lessons_are_rendered_as_glm_mlx_renders_them(corpus: ModuleType) -> None:
    template = (SCRIPTS.parents[1] / "glm_mlx" / "nano" / "chat_template.jinja").read_text()
    teacher = import_module("teach").Teacher(template)
    with glm_mlx.load() as glm:
        for dialogue in draw(corpus, 500, 3, test=False):
            if dialogue.text:
                continue
            prompt = teacher.prompt(dialogue)
            assert prompt == glm.tokenizer.render(dialogue.messages, tools=dialogue.tools)
            answered = [*dialogue.messages, {"role": "assistant", "content": "A"}]
            whole = glm.tokenizer.render(
                answered, tools=dialogue.tools, add_generation_prompt=False
            )
            assert whole == f"{prompt}\nA"


@pytest.mark.parity
@pytest.mark.slow
def test_the_script_trains_a_folder_that_loads(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "train.py"), "--dialogues", "100", "--questions", "1"]
    folders = ["--out", str(tmp_path / "nano"), "--work", str(tmp_path / "work")]
    subprocess.run(command + folders, check=True, timeout=280)
    with glm_mlx.load(tmp_path / "nano") as glm:
        assert glm.generate("Hello", max_tokens=4).usage.completion_tokens <= 4
