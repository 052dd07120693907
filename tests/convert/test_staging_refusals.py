"""Destinations that are refused, and that a refusal changes nothing of anybody's."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from makers.disk import failing_disk
from makers.results import result_files

from glm_mlx.convert.staging import Staging
from glm_mlx.errors import OptionError, ResourceError

HOLD = """
import sys, time
from pathlib import Path
from glm_mlx.convert.staging import Staging
destination, source = map(Path, sys.argv[1:])
with Staging(destination, source=source, fingerprint="f", overwrite=False) as staging:
    (staging.folder / "model.safetensors.part").write_bytes(b"half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for the destination, with a source of one file beside it."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").write_bytes(b"w")
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def take(
    destination: Path, *, source: Path, overwrite: bool = True, fingerprint: str = "f"
) -> Staging:
    """A destination as the command line asks for it, with the permission to overwrite."""
    return Staging(destination, source=source, fingerprint=fingerprint, overwrite=overwrite)


def make_result(folder: Path, *others: str) -> None:
    """Make a finished result by hand, of one weight file and the others named."""
    folder.mkdir()
    names = ("model.safetensors", *others)
    for name, data in {**dict.fromkeys(names, b"w"), **result_files(names)}.items():
        (folder / name).write_bytes(data)


def snapshot(place: Path) -> dict[str, tuple[int, int, int, bytes | None]]:
    """Everything below a folder, with what changes when it is touched."""
    found = {}
    for path in [place, *sorted(place.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path)] = (status.st_ino, status.st_mode, status.st_size, content)
    return found


def refuse(destination: Path, source: Path, match: str, *, overwrite: bool = True) -> OptionError:
    """Take a destination that must be refused without a trace."""
    before = snapshot(source.parent)
    with (
        pytest.raises(OptionError, match=match) as caught,
        take(destination, source=source, overwrite=overwrite),
    ):
        pass
    assert snapshot(source.parent) == before
    assert "\n" not in str(caught.value)
    return caught.value


# ---- case 37: something stands there ----


def test_case_37_a_finished_result_is_kept_unless_overwritten(place: Path) -> None:
    make_result(place / "model")
    refuse(place / "model", place.parent / "source", "finished conversion", overwrite=False)
    with take(place / "model", source=place.parent / "source") as staging:
        staging.write("conversion.json", b"new")
        staging.finish()
    assert (place / "model" / "conversion.json").read_bytes() == b"new"
    assert os.listdir(place) == ["model"]


@pytest.mark.parametrize("content", ["notes.txt", "config.json", "sub/conversion.json", ".hidden"])
def test_case_37_a_foreign_folder_is_never_replaced(place: Path, content: str) -> None:
    file = place / "model" / content
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    refuse(place / "model", place.parent / "source", "no conversion of ours")


@pytest.mark.parametrize("lacking", ["checksums.json", "conversion.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "[]", "thesis"])
def test_case_37_a_name_alone_makes_no_result(
    place: Path, lacking: str, content: str | None
) -> None:
    make_result(place / "model")
    file = place / "model" / lacking
    file.unlink()
    if content is not None:
        file.write_text(content)
    refuse(place / "model", place.parent / "source", "no conversion of ours")


@pytest.mark.parametrize(
    "name", ["thesis.txt", "adapters.safetensors", "LICENSE", "config.json.part", ".hidden"]
)
def test_case_37_a_file_put_into_a_result_is_kept(place: Path, name: str) -> None:
    make_result(place / "model")
    (place / "model" / name).write_text("mine")
    refuse(
        place / "model",
        place.parent / "source",
        f"holds {name!r}, which no conversion wrote.*; move that away or choose another",
    )
    refuse(place / "model", place.parent / "source", "finished conversion", overwrite=False)


def test_case_37_what_is_put_into_a_result_is_named_and_counted(place: Path) -> None:
    make_result(place / "model")
    for number in range(7):
        (place / "model" / f"{number}.txt").write_text("mine")
    refuse(
        place / "model",
        place.parent / "source",
        "holds '0.txt', '1.txt', '2.txt', '3.txt', '4.txt' and 2 more, which",
    )


def test_case_37_a_manifest_does_not_make_every_file_ours(place: Path) -> None:
    make_result(place / "model", "thesis.txt")
    refuse(place / "model", place.parent / "source", "holds 'thesis.txt'")


@pytest.mark.parametrize("kind", ["folder", "link", "dangling link"])
def test_case_37_what_is_no_file_is_not_ours(place: Path, kind: str) -> None:
    make_result(place / "model")
    shard = place / "model" / "model.safetensors"
    if kind == "folder":
        shard.unlink()
        shard.mkdir()
    elif kind == "link":
        shard.rename(place / "disk")
        shard.symlink_to(place / "disk")
    else:
        shard.unlink()
        shard.symlink_to("nowhere")
    refuse(place / "model", place.parent / "source", r"holds 'model\.safetensors', which")


def test_case_37_a_result_that_was_edited_is_still_ours(place: Path) -> None:
    make_result(place / "model", "config.json", "tokenizer.json")
    (place / "model" / "config.json").write_text("edited")
    (place / "model" / "tokenizer.json").unlink()
    for name in (".DS_Store", "README.md", "._config.json"):
        (place / "model" / name).write_text("a system's, or edited")
    with take(place / "model", source=place.parent / "source") as staging:
        staging.write("conversion.json", b"new")
        staging.finish()
    assert os.listdir(place / "model") == ["conversion.json"]
    assert os.listdir(place) == ["model"]


def test_case_37_a_file_is_never_replaced(place: Path) -> None:
    (place / "model").write_text("mine")
    refuse(place / "model", place.parent / "source", "is a file")


@pytest.mark.parametrize("suffix", [".unfinished", ".unfinished.journal"])
@pytest.mark.parametrize("is_folder", [True, False])
def test_case_37_foreign_names_beside_it_are_left_alone(
    place: Path, suffix: str, is_folder: bool
) -> None:
    other = place / f"model{suffix}"
    if is_folder:
        other.mkdir()
        (other / "notes.txt").write_text("mine")
    else:
        other.write_text("mine")
    refuse(
        place / "model",
        place.parent / "source",
        r"unfinished: holds 'notes|unfinished: exists|journal: is not|Is a directory",
    )


def test_case_37_a_foreign_folder_in_the_place_of_the_replaced_one(place: Path) -> None:
    make_result(place / "model")
    (place / "model.replaced").mkdir()
    (place / "model.replaced" / "notes.txt").write_text("mine")
    refuse(place / "model", place.parent / "source", r"model\.replaced' stands beside it")


def test_case_37_a_foreign_folder_that_appears_meanwhile(place: Path) -> None:
    with take(place / "model", source=place.parent / "source") as staging:
        staging.write("conversion.json", b"{}")
        (place / "model").mkdir()
        (place / "model" / "notes.txt").write_text("mine")
        with pytest.raises(OptionError, match="no conversion of ours"):
            staging.finish()
    assert (place / "model" / "notes.txt").read_text() == "mine"
    assert (place / "model.unfinished" / "conversion.json").exists()


# ---- case 38: the source ----


@pytest.mark.parametrize(
    "destination", ["source", "source/4bit", "source/deep/4bit", ".", "link", "link/4bit"]
)
def test_case_38_a_destination_apart_from_the_source(place: Path, destination: str) -> None:
    top = place.parent
    (top / "link").symlink_to("source")
    refuse(top / destination, top / "source", "choose a destination apart from the source")


def test_case_38_a_source_in_an_unfinished_folder(place: Path) -> None:
    (place / "model.unfinished").mkdir()
    refuse(place / "model", place / "model.unfinished", "apart from the source")


def test_case_38_a_neighbour_of_a_similar_name_is_apart(place: Path) -> None:
    with take(place.parent / "source-4bit", source=place.parent / "source"):
        pass


# ---- case 39: the disk is too small ----


def test_case_39_a_full_disk_is_seen_before_the_first_byte(place: Path) -> None:
    with (
        take(place / "model", source=place.parent / "source") as staging,
        pytest.raises(
            ResourceError, match=r"^.*/model: 10{18} bytes".replace("0{18}", "(,000){6}")
        ),
    ):
        staging.require(10**18)
    assert os.listdir(place) == []
    with take(place / "model", source=place.parent / "source") as staging:
        staging.require(1)


# ---- case 44: two processes ----


@pytest.fixture
def holder(place: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(place / "model"), str(place.parent / "source")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_case_44_the_second_process_names_the_first(
    place: Path, holder: subprocess.Popen[str]
) -> None:
    refuse(place / "model", place.parent / "source", rf"process {holder.pid} is writing")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with take(place / "model", source=place.parent / "source") as staging:
        assert os.listdir(staging.folder) == []


def test_case_44_a_volume_without_locks(
    place: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    error = refuse(place / "model", place.parent / "source", rf"process {holder.pid} is writing")
    assert "remove this file if that process is no conversion" in str(error)
    holder.kill()
    holder.wait()
    with take(place / "model", source=place.parent / "source") as staging:
        staging.write("conversion.json", b"{}")
        staging.finish()
    assert os.listdir(place) == ["model"]


def test_case_44_a_second_use_in_one_process(place: Path) -> None:
    source = place.parent / "source"
    with take(place / "model", source=source):
        refuse(place / "model", source, f"process {os.getpid()} is writing")
    with take(place / "model", source=source):
        pass


# ---- case 45: names and permissions ----


@pytest.mark.parametrize("call", ["open", "mkdir"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_case_45_a_read_only_place(place: Path, code: int, call: str) -> None:
    destination, source = place / "model", place.parent / "source"
    with failing_disk() as disk, take(destination, source=source):
        pass
    number = [name for name, _ in disk.log].index(call)
    with (
        failing_disk(number, OSError(code, os.strerror(code))),
        pytest.raises(OptionError, match=r"model: cannot be created: .*; choose another"),
        take(destination, source=source),
    ):
        pass
    assert os.listdir(place) == []


def test_case_45_a_name_that_leaves_no_room_for_the_others(place: Path) -> None:
    longest = os.pathconf(place, "PC_NAME_MAX") - len(".unfinished.journal")
    refuse(place / ("m" * (longest + 1)), place.parent / "source", "File name too long")
    with take(place / ("m" * longest), source=place.parent / "source") as staging:
        staging.write("conversion.json", b"{}")
        staging.finish()


def test_case_45_a_file_in_the_path(place: Path) -> None:
    (place / "file").write_text("mine")
    destination = place / "file" / "model"
    with (
        pytest.raises(OptionError, match="Not a directory"),
        take(destination, source=place.parent / "source"),
    ):
        pass
    assert (place / "file").read_text() == "mine"


def test_case_45_a_name_that_is_another_one_on_a_mac(place: Path) -> None:
    (place / "GLM-É").mkdir()
    source = place.parent / "source"
    refuse(place / "glm-é", source, "differs only in case from 'GLM-É'")
    with take(place / "GLM-E\N{COMBINING ACUTE ACCENT}", source=source):
        pass  # the same name for a Mac, and no other case


def test_case_45_a_mounted_volume(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    refuse(place / "disk", place.parent / "source", "is a mounted volume")
