"""What an error says, whatever the things it speaks of are called."""

from __future__ import annotations

import pytest

from glm_mlx.errors import GLMError
from glm_mlx.hub import resolve


@pytest.mark.parametrize("file", ["o", "a", "Hub", "neither", "folder", "owner/name", "x/y"])
def test_the_file_is_named_even_if_the_message_has_its_letters(file: str) -> None:
    text = "neither a folder here nor an owner/name on the Hub"
    assert str(GLMError(text, file=file)) == f"{file}: {text}"


@pytest.mark.parametrize("name", ["o", "a", "folder"])
def test_what_was_asked_for_is_said_back(name: str) -> None:
    with pytest.raises(GLMError) as refused:
        resolve(name)
    assert str(refused.value).startswith(f"{name}: neither a folder here nor")


def test_the_hint_comes_last() -> None:
    assert str(GLMError("is cut off", file="a.bin", hint="download it")) == (
        "a.bin: is cut off (download it)"
    )
