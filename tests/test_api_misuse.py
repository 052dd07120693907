"""The Python face used wrongly: a clear error, and the model goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import glm_mlx
from glm_mlx import GLM, ClosedError, GLMError, OptionError

HELLO = [{"role": "user", "content": "Hello"}]
BRIEF: dict[str, Any] = {"max_tokens": 5, "temperature": 0}
CHILD_REFUSED, CHILD_WENT_ON = 7, 8


@pytest.fixture(scope="module")
def glm() -> Iterator[GLM]:
    with glm_mlx.load() as glm:
        yield glm


@pytest.fixture(autouse=True)
def goes_on(glm: GLM) -> Iterator[None]:
    """Whatever a test does, the model says the same before and after it."""
    before = glm.generate(HELLO, **BRIEF).text
    yield
    assert glm.generate(HELLO, **BRIEF).text == before != ""


@pytest.mark.parametrize(
    "call",
    [
        lambda glm: glm.generate("Hello"),
        lambda glm: list(glm.stream(HELLO)),
        lambda glm: glm.astream(HELLO),
        lambda glm: glm.new_cache(),
        lambda glm: glm.model,
        lambda glm: glm.config,
    ],
    ids=["generate", "stream", "astream", "new_cache", "model", "config"],
)
def test_after_close_every_call_is_refused(call: Callable[[GLM], object]) -> None:
    closed = glm_mlx.load()
    closed.close()
    with pytest.raises(ClosedError, match="load it again"):
        call(closed)


def test_closing_twice_is_closing_and_text_needs_no_model() -> None:
    closed = glm_mlx.load()
    closed.close()
    closed.close()
    assert closed.tokenizer.decode(closed.tokenizer.encode("Hi", prefix=False)) == "Hi"


def test_a_reply_cut_off_by_close_says_so() -> None:
    closed = glm_mlx.load()
    never_stop = dict.fromkeys(closed.tokenizer.stop_ids, -1e9)
    chunks = closed.stream("Once", max_tokens=2000, logit_bias=never_stop)
    next(chunks)
    closed.close()
    with pytest.raises(ClosedError):
        list(chunks)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_refused(glm: GLM) -> None:
    child = os.fork()
    if child == 0:
        code = CHILD_WENT_ON
        try:
            glm.generate(HELLO, **BRIEF)
        except ClosedError as error:
            code = CHILD_REFUSED if "fork" in str(error) else code
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended[0] == child, "the child hung"
    assert os.waitstatus_to_exitcode(ended[1]) == CHILD_REFUSED


@pytest.mark.parametrize(
    "call",
    [
        lambda glm: glm.generate(HELLO, **BRIEF),
        lambda glm: list(glm.stream(HELLO, **BRIEF)),
    ],
    ids=["generate", "stream"],
)
def test_a_callback_cannot_ask_its_own_model(glm: GLM, call: Callable[[GLM], object]) -> None:
    with pytest.raises(OptionError, match="callback"):
        glm.generate(HELLO, on_prefill=lambda done, total: call(glm), **BRIEF)


def test_a_callback_may_ask_another_model(glm: GLM) -> None:
    said: list[str] = []
    with glm_mlx.load() as other:
        ask = lambda done, total: said.append(other.generate(HELLO, **BRIEF).text)  # noqa: E731
        reply = glm.generate(HELLO, on_prefill=ask, **BRIEF)
    assert {*said} == {reply.text}


class Odd(Exception):
    """Nothing this package knows."""


@pytest.mark.parametrize("kind", [Odd, KeyboardInterrupt, SystemExit, StopIteration])
def test_what_a_callback_raises_reaches_the_caller(glm: GLM, kind: type[BaseException]) -> None:
    raised = kind("here")

    def fail(done: int, total: int) -> None:
        raise raised

    with pytest.raises((kind, RuntimeError)) as caught:
        glm.generate(HELLO, on_prefill=fail, **BRIEF)
    # A generator turns StopIteration into a RuntimeError, so that it cannot pass for an end.
    assert raised in (caught.value, caught.value.__cause__)


def test_two_models_take_turns_and_end_apart(glm: GLM) -> None:
    alone = glm.generate(HELLO, seed=3, temperature=0.8, max_tokens=12).text
    other = glm_mlx.load()
    options = {"seed": 3, "temperature": 0.8, "max_tokens": 12}
    pairs = list(zip(glm.stream(HELLO, **options), other.stream(HELLO, **options), strict=True))
    assert "".join(ours.text for ours, _ in pairs) == alone
    assert "".join(theirs.text for _, theirs in pairs) == alone
    other.close()


PROMPTS: dict[str, object] = {
    "nothing": None,
    "empty text": "",
    "bytes": b"Hello",
    "array": mx.array([1, 2, 3]),
    "numpy array": np.array([1, 2, 3]),
    "number": 5,
    "one message": HELLO[0],
    "empty list": [],
    "generator": (id for id in (1, 2)),
    "floats": [1.0, 2.0],
    "booleans": [True, False],
    "texts": ["Hello"],
    "ids and messages": [1, HELLO[0]],
    "negative id": [-1],
    "id beyond the vocabulary": [10**6],
    "id beyond 64 bits": [2**70],
    "surrogate": "\ud800",
    "message without role": [{"content": "Hello"}],
    "unknown role": [{"role": "wizard", "content": "Hello"}],
    "number as content": [{"role": "user", "content": 5}],
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_odd_prompts_are_refused(glm: GLM, prompt: Any) -> None:
    with pytest.raises(GLMError):
        glm.generate(prompt, **BRIEF)


OPTIONS: dict[str, tuple[str, object]] = {
    "max_tokens zero": ("max_tokens", 0),
    "max_tokens negative": ("max_tokens", -5),
    "max_tokens text": ("max_tokens", "5"),
    "max_tokens fraction": ("max_tokens", 1.5),
    "max_tokens boolean": ("max_tokens", True),
    "temperature text": ("temperature", "hot"),
    "cancel boolean": ("cancel", True),
    "template_options messages": ("template_options", {"messages": []}),
    "template_options self": ("template_options", {"self": 1}),
    "template_options number": ("template_options", {1: 1}),
    "on_prefill text": ("on_prefill", "print"),
    "cache list": ("cache", []),
    "template_options list": ("template_options", ["think"]),
    "temperature array": ("temperature", mx.array(0.5)),
    "temperature nan": ("temperature", float("nan")),
    "top_p above one": ("top_p", 1.1),
    "seed fraction": ("seed", 1.5),
    "seed of 65 bits": ("seed", 2**64),
    "stop number": ("stop", 5),
    "stop numbers": ("stop", [5]),
    "logit_bias list": ("logit_bias", [5]),
    "logit_bias outside": ("logit_bias", {99999999: 5.0}),
    "logit_bias text id": ("logit_bias", {"5": 5.0}),
    "step zero": ("prefill_step_size", 0),
    "step text": ("prefill_step_size", "8"),
    "tools text": ("tools", "calculator"),
    "tools numbers": ("tools", [5]),
}


@pytest.mark.parametrize(("name", "value"), OPTIONS.values(), ids=OPTIONS)
def test_odd_options_are_refused_by_name(glm: GLM, name: str, value: Any) -> None:
    with pytest.raises(OptionError) as refused:
        glm.generate(HELLO, **{**BRIEF, name: value})
    assert name in f"{refused.value} {refused.value.field}"


def test_an_option_that_does_not_exist_is_a_type_error(glm: GLM) -> None:
    with pytest.raises(TypeError, match="temprature"):
        glm.generate(HELLO, temprature=0.5)  # type: ignore[call-arg]
