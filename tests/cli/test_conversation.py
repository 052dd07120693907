"""Saved conversations: what is written is read back, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_mlx.cli.conversation import Conversation
from glm_mlx.errors import InputFileError, ResourceError

said = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
conversations = st.builds(
    lambda system, turns: (system, turns), st.none() | said, st.lists(st.tuples(said, said))
)


def make(system: str | None, turns: list[tuple[str, str]]) -> Conversation:
    conversation = Conversation(system)
    for question, answer in turns:
        conversation.add(question, answer)
    return conversation


@given(conversations)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, parts: tuple[Any, Any]
) -> None:
    conversation = make(*parts)
    file = tmp_path_factory.mktemp("talk") / "talk.json"
    conversation.save(file, model="m")
    assert Conversation.load(file) == conversation
    assert list(file.parent.iterdir()) == [file]


def user(content: object = "a") -> dict[str, object]:
    return {"role": "user", "content": content}


def assistant(content: object = "b") -> dict[str, object]:
    return {"role": "assistant", "content": content}


FOREIGN: dict[str, tuple[object, str]] = {
    "list": ([user(), assistant()], "expected a JSON object"),
    "other object": ({"name": "x"}, "not a saved conversation"),
    "messages no list": ({"messages": {}}, "not a saved conversation"),
    "message no object": ({"messages": ["a"]}, "messages[0]"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0]"),
    "number": ({"messages": [user(), assistant(5)]}, "messages[1]"),
    "blank": ({"messages": [user(" "), assistant()]}, "messages[0]"),
    "unknown role": (
        {"messages": [{"role": "wizard", "content": "a"}, assistant()]},
        "messages[0]",
    ),
    "two users": ({"messages": [user(), user()]}, 'messages[1] must have the "role" assistant'),
    "answer first": ({"messages": [assistant()]}, "messages[0]"),
    "late system": (
        {"messages": [user(), assistant(), {"role": "system", "content": "s"}]},
        "messages[2]",
    ),
    "counted with the system prompt": (
        {"messages": [{"role": "system", "content": "s"}, user(), assistant(), assistant()]},
        "messages[3]",
    ),
    "no answer": ({"messages": [user()]}, "messages[0] has no answer"),
}


@pytest.mark.parametrize(("data", "found"), FOREIGN.values(), ids=FOREIGN)
def test_other_files_are_neither_loaded_nor_replaced(
    tmp_path: Path, data: object, found: str
) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps(data))
    before = file.read_bytes()
    with pytest.raises(InputFileError) as refused:
        Conversation.load(file)
    assert found in str(refused.value)
    assert str(file) in str(refused.value)
    with pytest.raises(InputFileError, match="not overwritten"):
        Conversation().save(file, model="m")
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["absent/talk.json", ".", "x" * 300])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputFileError, match=r"not overwritten|cannot be"):
        Conversation().save(tmp_path / name, model="m")


def test_an_absent_file_is_no_part_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    with pytest.raises(InputFileError) as refused:
        Conversation.load(file)
    assert str(refused.value) == f"{file}: file not found"


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Conversation().save(tmp_path / "talk.json", model="m")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "talk.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_behind_a_link_is_written_and_keeps_its_permissions(
    tmp_path: Path, mode: int
) -> None:
    """The first save finds a link to nothing, the second one a file."""
    file, link = tmp_path / "elsewhere" / "talk.json", tmp_path / "link"
    file.parent.mkdir()
    link.symlink_to(file)
    make(None, []).save(link, model="m")
    file.chmod(mode)
    conversation = make(None, [("a", "b")])
    conversation.save(link, model="m")
    assert link.is_symlink()
    assert Conversation.load(file) == conversation
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert list(file.parent.iterdir()) == [file]


def test_a_link_in_a_circle_is_left_alone(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(InputFileError, match="not overwritten"):
        Conversation().save(link, model="m")
    assert list(tmp_path.iterdir()) == [link]


def test_a_failed_save_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "talk.json"
    make(None, [("a", "b")]).save(file, model="m")
    before = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match="No space left"):
        make("new", []).save(file, model="m")
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
