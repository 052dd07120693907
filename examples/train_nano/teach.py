"""Dialogues to token ids and to the mask of what is learnt, through the checkpoint's template."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, cast

from corpus import Dialogue
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from glm_mlx.text.ranks import SPECIAL_TOKENS

PREFIX = "[gMASK]<sop>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


@dataclass(frozen=True)
class Lesson:
    """Token ids and, for each, whether the model is taught to write it."""

    ids: list[int]
    learnt: list[bool]


class Teacher:
    """Renders dialogues with one chat template, as transformers does."""

    def __init__(self, template: str) -> None:
        self.template = template

    def prompt(self, dialogue: Dialogue) -> str:
        """Everything before the completion."""
        if dialogue.text:
            return PREFIX
        rendered: Any = render_jinja_template(
            conversations=[dialogue.messages],
            tools=cast("list[dict[Any, Any] | Callable[..., Any]] | None", dialogue.tools),
            chat_template=self.template,
            add_generation_prompt=True,
        )
        return str(rendered[0][0])

    def text(self, dialogue: Dialogue) -> str:
        """The words of the dialogue without special tokens, for learning a vocabulary."""
        pattern = "|".join(map(re.escape, SPECIAL_TOKENS))
        return re.sub(pattern, "\n", self.prompt(dialogue) + self.completion(dialogue))

    def completion(self, dialogue: Dialogue, rng: Random | None = None) -> str:
        """What the model has to write: a newline and the answer, or the call, and the stop.

        With `rng`, one time in four any of the right answers, else the first.
        """
        if dialogue.text:
            return dialogue.text + dialogue.stop
        right = self.right(dialogue)
        return rng.choice(right) if rng and rng.random() < 0.25 else right[0]

    def right(self, dialogue: Dialogue) -> list[str]:
        """All completions that are right, the first the preferred one."""
        lead = "" if dialogue.stop == "<|observation|>" else "\n"
        return [lead + answer + dialogue.stop for answer in dialogue.completions]

    def lesson(self, dialogue: Dialogue, tokenizer: Tokenizer, rng: Random | None = None) -> Lesson:
        """Encode a dialogue; taught are its completion and, if it says so, its earlier answers."""
        ids = tokenizer.encode(self.prompt(dialogue), add_special_tokens=False).ids
        learnt = [False] * len(ids)
        if dialogue.learn_history:
            role_ids = {tokenizer.token_to_id(role) for role in ROLES}
            speaking = False
            for position, token in enumerate(ids):
                learnt[position] = speaking
                if token in role_ids:
                    speaking = token == tokenizer.token_to_id("<|assistant|>")
        text = self.completion(dialogue, rng)
        written = tokenizer.encode(text, add_special_tokens=False).ids
        return Lesson(ids + written, learnt + [True] * len(written))
