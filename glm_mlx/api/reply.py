"""What comes back from a request: its chunks gathered, thought and calls read out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from glm_mlx.api.request import Request
from glm_mlx.generate.engine import Usage
from glm_mlx.generate.stream import Chunk, Detokenizer, Timings
from glm_mlx.text import Tokenizer
from glm_mlx.text.reasoning import split_reasoning
from glm_mlx.text.tools import ToolCall, parse_tool_calls


@dataclass(frozen=True)
class Completion:
    """A whole reply.

    Attributes:
        text: all of it, exactly the stream's pieces joined.
        token_ids: its ids, the one that ended it left out.
        finish_reason: "stop", "length", "tool_calls" or "cancelled".
        reasoning: the thought before a ``</think>``; None if there was none.
        tool_calls: the functions the model wants called, if it stopped to wait for them.
        seed: gives the same reply again.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    timings: Timings
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    seed: int

    @classmethod
    def gather(cls, chunks: Sequence[Chunk], request: Request, tokenizer: Tokenizer) -> Self:
        """Join the chunks of one reply, which is whole."""
        last = chunks[-1]
        assert last.finish_reason is not None and last.usage is not None
        assert last.timings is not None and last.seed is not None
        text = "".join(chunk.text for chunk in chunks)
        token_ids = tuple(token for chunk in chunks for token in chunk.token_ids)
        reasoning: str | None = None
        calls: tuple[ToolCall, ...] = ()
        if request.is_chat:
            reasoning, _ = split_reasoning(text, starts_inside=request.in_thought)
        # GLM ends its turn with the role it expects next: an observation answers a call.
        if request.is_chat and last.stop_id == tokenizer.special_ids.get("<|observation|>"):
            # Several calls stand behind one <|assistant|> each, which `text` does not show.
            first, *others = _split(token_ids, tokenizer.special_ids.get("<|assistant|>"))
            _, answer = split_reasoning(tokenizer.decode(first), starts_inside=request.in_thought)
            turns = [answer, *map(tokenizer.decode, others)]
            _, calls = parse_tool_calls(turns, request.tools)
        return cls(
            text=text,
            token_ids=token_ids,
            finish_reason="tool_calls" if calls else last.finish_reason,
            usage=last.usage,
            timings=last.timings,
            reasoning=reasoning,
            tool_calls=calls,
            seed=last.seed,
        )


def _split(ids: Sequence[int], border: int | None) -> list[list[int]]:
    """The runs of ids between the borders."""
    runs: list[list[int]] = [[]]
    for token in ids:
        if token == border:
            runs.append([])
        else:
            runs[-1].append(token)
    return runs


class AfterHeader:
    """A detokenizer that drops the newline with which GLM ends the role header of its own turn.

    The template leaves that newline to the model; nobody means it as part of the reply.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._at_start = True

    def push(self, id: int, /) -> str:
        return self._trimmed(self._detokenizer.push(id))

    def finish(self) -> str:
        return self._trimmed(self._detokenizer.finish())

    def _trimmed(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix("\n")
        return text
