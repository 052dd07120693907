"""`thought</think>answer` -> the thought and the answer; knows text, no tokens."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"


def split_reasoning(text: str, *, starts_inside: bool) -> tuple[str | None, str]:
    """Split a completion into its thought, None if there is none, and its answer.

    A thought that was cut off before its end has an empty answer. The newline that ends the
    assistant's role line is dropped from the answer, as are all around a thought.

    Args:
        text: the completion.
        starts_inside: whether the prompt ended with `<think>`, as GLM-Z1's does.
    """
    body = text.lstrip()
    if not body.startswith(_OPEN) and not starts_inside:
        return None, text.removeprefix("\n")
    thought, _, answer = body.removeprefix(_OPEN).partition(_CLOSE)
    return thought.strip("\n"), answer.lstrip("\n")
