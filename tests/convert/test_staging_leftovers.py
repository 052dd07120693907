"""What lies around a conversion: strangers' files, journals that are lost, traces that stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from makers.disk import skip_flushes
from makers.results import result_files

from glm_mlx.convert.staging import Staging
from glm_mlx.errors import GLMWarning, OptionError, ResourceError

JOURNAL = "model.unfinished.journal"
UNFINISHED = "model.unfinished"
BEGINNING = b'{"journal": "glm-mlx", "fingerprint": "f", "pid": 1}\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for the destination, with a source beside it."""
    (tmp_path / "source").mkdir()
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_flushes(monkeypatch)


def take(place: Path, *, overwrite: bool = False, fingerprint: str = "f") -> Staging:
    return Staging(
        place / "model",
        source=place.parent / "source",
        fingerprint=fingerprint,
        overwrite=overwrite,
    )


def convert(place: Path, *, overwrite: bool = False) -> None:
    """Make a result of two small files and what tells it."""
    with take(place, overwrite=overwrite) as staging:
        staging.write("config.json", b"new")
        for name, data in result_files(["config.json"]).items():
            staging.write(name, data)
        staging.finish()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def interrupt(place: Path) -> None:
    """Leave an unfinished folder with a whole file and a part of one, and its journal."""
    with take(place) as staging:
        (staging.folder / "model-00001-of-00002.safetensors").write_bytes(b"w")
        (staging.folder / "model-00002-of-00002.safetensors.part").write_bytes(b"w")


def refuse(place: Path, match: str, *, overwrite: bool = False, fingerprint: str = "f") -> None:
    """Be refused, and find everything as it was."""
    before = files(place), sorted(os.listdir(place))
    with pytest.raises(OptionError, match=match) as caught:
        take(place, overwrite=overwrite, fingerprint=fingerprint).__enter__()
    assert (files(place), sorted(os.listdir(place))) == before
    assert "\n" not in str(caught.value)


# ---- files of somebody else in the unfinished folder ----


@pytest.mark.parametrize("fingerprint", ["f", "other settings"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.txt", "thesis.part", "model.safetensors/thesis.txt"])
def test_a_file_put_into_the_unfinished_folder_is_kept(
    place: Path, name: str, overwrite: bool, fingerprint: str
) -> None:
    interrupt(place)
    file = place / UNFINISHED / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    found = rf"model\.unfinished: holds '{name.partition('/')[0]}', which no conversion wrote"
    refuse(place, found, overwrite=overwrite, fingerprint=fingerprint)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_unfinished_folder_that_is_a_link_is_left_alone(place: Path, overwrite: bool) -> None:
    (place / "mine").mkdir()
    (place / UNFINISHED).symlink_to("mine")
    refuse(place, r"model\.unfinished: exists and is no folder", overwrite=overwrite)


def test_a_file_put_into_the_old_result_at_the_last_moment(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new result is whole all the same, and the file is where the warning says."""
    convert(place)
    rename = os.rename

    def rename_and_add(old: Path, new: Path) -> None:
        rename(old, new)
        if new.name == "model.replaced":
            (new / "thesis.txt").write_text("mine")

    monkeypatch.setattr(os, "rename", rename_and_add)
    with pytest.warns(GLMWarning, match=r"model is finished, but .*model\.replaced could not"):
        convert(place, overwrite=True)
    replaced = place / "model.replaced"
    with pytest.raises(OptionError, match=r"model\.replaced: holds 'thesis\.txt'"):
        take(place).__enter__()
    assert (replaced / "thesis.txt").read_text() == "mine"
    (replaced / "thesis.txt").rename(place / "thesis.txt")
    with pytest.raises(OptionError, match="finished"):
        take(place).__enter__()
    assert sorted(os.listdir(place)) == ["model", "thesis.txt"]


# ---- journals that are lost ----


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "is missing"),
        (b"", "is damaged"),
        (BEGINNING[:9], "is damaged"),
        (BEGINNING[:-1], "is damaged"),
        (b'{"journal": "glm-mlx", \0\0\0\0\n', "is damaged"),
        (b"\0" * 60, "is damaged"),
        (b"\xff garbage\n", "is damaged"),
    ],
)
def test_a_conversion_whose_journal_is_lost_can_be_started_over(
    place: Path, content: bytes | None, found: str
) -> None:
    interrupt(place)
    journal = place / JOURNAL
    if content is None:
        journal.unlink()
    else:
        journal.write_bytes(content)
    refuse(place, rf"cannot be continued, as its journal '{JOURNAL}' {found}; give --overwrite")
    with take(place, overwrite=True) as staging:
        assert os.listdir(staging.folder) == []
        assert staging.done == {}
    assert os.listdir(place) == []


@pytest.mark.parametrize("content", [b"mine", b""])
def test_a_file_in_the_place_of_the_journal_is_no_reason_to_remove_a_folder(
    place: Path, content: bytes
) -> None:
    (place / UNFINISHED).mkdir()
    (place / UNFINISHED / "thesis.txt").write_text("mine")
    (place / JOURNAL).write_bytes(content)
    refuse(place, "holds 'thesis.txt'", overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_journal_alone_is_left_alone(place: Path, overwrite: bool) -> None:
    (place / JOURNAL).write_bytes(b"mine")
    refuse(place, "is not the journal of a conversion", overwrite=overwrite)


def test_starting_over_can_be_cut_short_anywhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new journal comes before the old files go."""
    interrupt(place)
    (place / JOURNAL).write_bytes(b"garbage")
    monkeypatch.setattr(os, "unlink", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        take(place, overwrite=True).__enter__()
    monkeypatch.undo()
    with take(place) as staging:
        assert os.listdir(staging.folder) == []


# ---- traces that cannot be removed ----


@pytest.mark.parametrize("stays", ["model.replaced", JOURNAL])
def test_a_result_is_a_result_whatever_stays_beside_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, stays: str
) -> None:
    convert(place)
    (place / "model" / "config.json").write_bytes(b"old")
    unlink = os.unlink

    def refuse_to_unlink(path: Path) -> None:
        if stays in (path.name, path.parent.name):
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse_to_unlink)
        expected = rf"/model is finished, but .*/{stays} could not be removed: Operation not perm"
        with pytest.warns(GLMWarning, match=expected):
            convert(place, overwrite=True)
        assert (place / "model" / "config.json").read_bytes() == b"new"
        if stays != JOURNAL:
            with pytest.raises(ResourceError, match=r"model\.replaced: cannot be written"):
                take(place).__enter__()
    assert stays in os.listdir(place)
    with pytest.raises(OptionError, match="finished"):
        take(place).__enter__()
    assert os.listdir(place) == ["model"]


# ---- the working folder ----


@pytest.mark.parametrize("destination", [".", "..", "../..", "../../work"])
def test_the_working_folder_is_not_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch, destination: str
) -> None:
    inner = place / "work" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    staging = Staging(
        Path(destination), source=place.parent / "source", fingerprint="f", overwrite=True
    )
    if destination == "../../work":
        monkeypatch.chdir(place)
        (place / "work").rename(place / "elsewhere")
        (place / "work").symlink_to("elsewhere")
        monkeypatch.chdir(place / "work")
    with pytest.raises(OptionError, match="is the working folder or holds it"):
        staging.__enter__()


def test_a_working_folder_that_is_gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = place / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    work.rmdir()
    for destination, source in ((Path("model"), place), (place / "model", Path("source"))):
        with pytest.raises(OptionError, match="the working folder is gone"):
            Staging(destination, source=source, fingerprint="f", overwrite=False)
    convert(place)
    assert os.listdir(place) == ["model"]
