"""`</think>` parts the thought from the answer, and no other character is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_mlx.text.reasoning import split_reasoning


@pytest.mark.parametrize(
    ("text", "starts_inside", "expected"),
    [
        ("\nHello", False, (None, "Hello")),
        ("Hello", False, (None, "Hello")),
        ("\n\nHello", False, (None, "\nHello")),
        ("2+2\nis 4\n</think>\n\n4", True, ("2+2\nis 4", "4")),
        ("\nhm</think>4", True, ("hm", "4")),
        ("\n<think>\nhm\n</think>\n4", False, ("hm", "4")),
        ("<think>hm</think>4", True, ("hm", "4")),
        ("cut off in", True, ("cut off in", "")),
        ("<think>cut off", False, ("cut off", "")),
        ("</think>4", True, ("", "4")),
        ("a</think>the tag </think> ends it", True, ("a", "the tag </think> ends it")),
        ("it says <think> here</think>", False, (None, "it says <think> here</think>")),
        ("", True, ("", "")),
        ("", False, (None, "")),
    ],
)
def test_forms(text: str, starts_inside: bool, expected: tuple[str | None, str]) -> None:
    assert split_reasoning(text, starts_inside=starts_inside) == expected


words = st.text().filter(lambda text: "think>" not in text)


@settings(deadline=None)
@given(thought=words, answer=words)
def test_both_parts_survive(thought: str, answer: str) -> None:
    found = split_reasoning(f"\n<think>{thought}</think>{answer}", starts_inside=False)
    assert found == (thought.strip("\n"), answer.lstrip("\n"))
    prompted = split_reasoning(f"{thought.strip()}</think>{answer}", starts_inside=True)
    assert prompted == (thought.strip(), answer.lstrip("\n"))
