"""The command line in this process and in its own, and a stand-in for a loaded model."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self

import pytest
from click.testing import CliRunner, Result

from glm_mlx.api import Completion
from glm_mlx.cli import main
from glm_mlx.cli.options import ModelChoice
from glm_mlx.generate.engine import Usage
from glm_mlx.generate.stream import Chunk, Timings

PROGRAM = (sys.executable, "-m", "glm_mlx")


@dataclass
class FakeGLM:
    """Says what it was told to say, and remembers what it was asked.

    Attributes:
        says: the pieces of every reply, or a function from the prompt to them.
        asked: each prompt with its options.
        before_piece: called ahead of each piece, to make something happen in the midst of it.
    """

    says: Sequence[str] | Callable[[Any], Sequence[str]] = ("Hello", " there")
    has_chat_template: bool = True
    before_piece: Callable[[int], object] = lambda number: None
    asked: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    choice: ModelChoice | None = None
    closed: bool = False

    @property
    def tokenizer(self) -> SimpleNamespace:
        return SimpleNamespace(has_chat_template=self.has_chat_template)

    def new_cache(self) -> object:
        return object()

    def stream(self, prompt: Any, **options: Any) -> Iterator[Chunk]:
        self.asked.append((prompt, options))
        says = self.says(prompt) if callable(self.says) else self.says
        cancel = options["cancel"]
        reason = "stop"
        said = 0
        for number, piece in enumerate(says):
            self.before_piece(number)
            if cancel.is_set():
                reason = "cancelled"
                break
            said += 1
            yield Chunk(piece, (number,))
        yield Chunk("", (), reason, Usage(7, said, 3), Timings(4, 0.5, said, 2.0), None, None, 11)

    def generate(self, prompt: Any, **options: Any) -> Completion:
        *_, last = chunks = list(self.stream(prompt, **options))
        text = "".join(chunk.text for chunk in chunks)
        ids = tuple(token for chunk in chunks for token in chunk.token_ids)
        return Completion(
            text, ids, last.finish_reason, last.usage, last.timings, None, (), last.seed
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


@pytest.fixture
def fake_glm(monkeypatch: pytest.MonkeyPatch) -> FakeGLM:
    """What every `--model` loads in this test."""
    fake = FakeGLM()

    def load(choice: ModelChoice) -> FakeGLM:
        fake.choice = choice
        choice.announce()
        return fake

    monkeypatch.setattr(ModelChoice, "load", load)
    return fake


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run a command line in this process: `run("generate", "-p", "Hi", input=b"...")`."""

    def invoke(*arguments: str, input: bytes = b"", env: Mapping[str, str] | None = None) -> Result:
        return CliRunner().invoke(main, list(arguments), input=input, env=env)

    return invoke


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the program as its own process, with pipes; what still runs at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def popen(
        *arguments: str, env: Mapping[str, str] | None = None, **streams: Any
    ) -> subprocess.Popen[bytes]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | streams
        process = subprocess.Popen(
            [*PROGRAM, *arguments], env={**os.environ, **(env or {})}, **pipes
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def refused(run: Callable[..., Result]) -> Callable[..., str]:
    """Run a command line that must fail, and return its error line.

    Whatever headers decide fails within two seconds; all of it as one line that can be printed,
    without a traceback and without a word on stdout.
    """

    def check(*arguments: str, code: int, limit_seconds: float = 2, **how: Any) -> str:
        started = time.perf_counter()
        result = run(*arguments, **how)
        seconds = time.perf_counter() - started
        lines = result.stderr.splitlines()
        errors = [line for line in lines if line.startswith("glm-mlx: error: ")]
        assert (result.exit_code, len(errors)) == (code, 1), result.stderr
        assert all(line.startswith("glm-mlx: ") and line.isprintable() for line in lines)
        assert "internal error" not in errors[0]
        assert result.stdout == ""
        assert seconds < limit_seconds
        return errors[0]

    return check
