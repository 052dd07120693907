"""The journal: what was recorded is there again, a cut line is not, and one process has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.disk import skip_flushes

from glm_mlx.convert.journal import Journal
from glm_mlx.errors import OptionError

State = tuple[str | None, dict[str, dict[str, object]], bool]


def state(journal: Journal) -> State:
    return journal.fingerprint, dict(journal.shards), journal.replacing


def reopen(file: Path) -> State:
    journal = Journal(file)
    journal.close()
    return state(journal)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        skip_flushes(patch)
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_a_new_journal_is_blank(file: Path) -> None:
    assert reopen(file) == (None, {}, False)


def test_what_is_recorded_is_there_again(file: Path) -> None:
    journal = Journal(file)
    journal.start("f")
    journal.record("a", {"sha256": "1", "名": [0.1, None]})
    journal.record("a", {"sha256": "2"})
    journal.record("b", {"sha256": "3"})
    journal.set_replacing(True)
    expected = ("f", {"a": {"sha256": "2"}, "b": {"sha256": "3"}}, True)
    assert state(journal) == expected
    journal.close()
    assert reopen(file) == expected


def test_starting_forgets(file: Path) -> None:
    journal = Journal(file)
    journal.start("one")
    journal.record("a", {"sha256": "1"})
    journal.start("two")
    journal.close()
    assert reopen(file) == ("two", {}, False)


@given(st.data())
def test_a_journal_cut_anywhere_holds_what_came_before(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """And goes on from there, whatever garbage the crash left after the cut."""
    file = tmp_path_factory.mktemp("cut") / "journal"
    journal = Journal(file)
    steps = [(os.path.getsize(file), state(journal))]
    journal.start("f")
    steps.append((os.path.getsize(file), state(journal)))
    for name in "abc":
        journal.record(name, {"sha256": name * 9, "nested": {"x": [1]}})
        steps.append((os.path.getsize(file), state(journal)))
    journal.close()
    content = file.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    garbage = data.draw(st.sampled_from([b"", b"\0" * 40, b'{"sh', b"?\n", b"\xff\n"]))
    whole = content[:cut] + (garbage if cut >= steps[1][0] else b"")
    file.write_bytes(whole)
    before = next(found for size, found in reversed(steps) if size <= cut)
    journal = Journal(file)
    assert state(journal) == before
    if journal.fingerprint is None:
        journal.start("f")
    journal.record("new", {"sha256": "n"})
    expected = ("f", before[1] | {"new": {"sha256": "n"}}, False)
    journal.close()
    assert reopen(file) == expected


def test_a_removed_journal_is_not_locked_for_the_next(file: Path) -> None:
    """Who waited for the lock of a file that has lost its name would lock nothing."""
    holder = Journal(file)
    with pytest.raises(OptionError):
        Journal(file)
    holder.start("f")
    holder.remove()
    assert not file.exists()
    second = Journal(file)
    assert state(second) == (None, {}, False)
    assert file.exists()
    with pytest.raises(OptionError):
        Journal(file)
    second.close()


def test_a_journal_removed_while_it_is_opened(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Journal(file)
    open_file = os.open

    def open_late(*arguments: object) -> int:
        descriptor = open_file(*arguments)  # type: ignore[arg-type]
        if Path(str(arguments[0])) == file and holder._descriptor >= 0:
            monkeypatch.setattr(os, "open", open_file)
            holder.remove()
        return descriptor

    monkeypatch.setattr(os, "open", open_late)
    second = Journal(file)
    assert os.fstat(second._descriptor).st_ino == file.stat().st_ino
    second.close()


@pytest.mark.parametrize("content", [b"mine", b"{}\n", b'{"journal": "of my journey"}', b"\0" * 9])
def test_another_file_of_that_name_is_left_alone_until_the_start(
    file: Path, content: bytes
) -> None:
    file.write_bytes(content)
    journal = Journal(file)
    assert (journal.is_foreign, journal.fingerprint) == (True, None)
    assert file.read_bytes() == content
    journal.start("f")
    assert not journal.is_foreign
    journal.close()
    assert reopen(file) == ("f", {}, False)


@pytest.mark.parametrize(
    "line", [b"7", b'{"shard": "a"}', b'{"shard": "a", "entry": {}}', b'{"pid": "1"}', b"[" * 9999]
)
def test_a_line_of_another_kind_ends_the_log(file: Path, line: bytes) -> None:
    journal = Journal(file)
    journal.start("f")
    journal.close()
    beginning = file.read_bytes()
    file.write_bytes(beginning + line + b"\n")
    assert reopen(file) == ("f", {}, False)
    assert file.read_bytes() == beginning


def test_a_log_whose_first_line_is_cut_is_not_touched(file: Path) -> None:
    file.write_bytes(b'{"journal": "glm-mlx", "finger')
    assert reopen(file) == (None, {}, False)
    assert file.read_bytes() == b'{"journal": "glm-mlx", "finger'
