"""The staging folder: continued after any stop, and one step from there to the result."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from makers.disk import Killed, failing_disk, skip_flushes
from makers.results import result_files

from glm_mlx.checkpoint.layout import ShardPlan, TensorSpec, plan_shards
from glm_mlx.checkpoint.writer import ShardWriter
from glm_mlx.convert.staging import Staging
from glm_mlx.errors import GLMWarning, OptionError, ResourceError

SHARDS = 3
Files = dict[str, bytes]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An own folder for the destination, with a source beside it."""
    (tmp_path / "source").mkdir()
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_flushes(monkeypatch)


def plans() -> list[ShardPlan]:
    specs = [[TensorSpec(f"{i}.{part}", "U8", (5,)) for part in "ab"] for i in range(SHARDS)]
    return plan_shards(specs, max_bytes=10, file_format="mlx")


def convert(
    destination: Path, *, recipe: str = "one", overwrite: bool = False, stop_after: int = SHARDS
) -> list[str]:
    """Make a small result the way a conversion does, and return the shards made by this call."""
    made = []
    source = destination.parent.parent / "source"
    with Staging(destination, source=source, fingerprint=recipe, overwrite=overwrite) as staging:
        staging.require(1)
        for plan in plans():
            if plan.file_name in staging.done:
                continue
            if len(made) == stop_after:
                raise KeyboardInterrupt
            with ShardWriter(staging.folder, plan) as shard:
                for name in plan.spans:
                    shard.write(name, f"{recipe}-{name}"[-5:].encode())
                digest = shard.finish()
            staging.record(plan.file_name, {"sha256": digest})
            made.append(plan.file_name)
        staging.write("config.json", recipe.encode())
        for name, data in result_files({*staging.done, "config.json"}, recipe=recipe).items():
            staging.write(name, data)
        staging.finish()
    return made


def files(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def interrupt(destination: Path, after: int, **options: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(destination, stop_after=after, **options)  # type: ignore[arg-type]


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Files]:
    """Recipe -> what an undisturbed conversion makes."""
    (tmp_path / "undisturbed").mkdir()
    results = {}
    for recipe in ("one", "two"):
        convert(tmp_path / "undisturbed" / recipe, recipe=recipe)
        results[recipe] = files(tmp_path / "undisturbed" / recipe)
    return results


# ---- from nothing to a result ----


def test_a_result_appears_in_one_step(place: Path, whole: dict[str, Files]) -> None:
    destination = place / "new" / "model"
    with failing_disk() as disk:
        convert(destination)
    assert files(destination) == whole["one"]
    assert os.listdir(destination.parent) == ["model"]
    renames = [name for call, name in disk.log if call == "rename"]
    assert renames == ["model.unfinished"]


def test_everything_is_on_the_disk_before_what_says_so(place: Path) -> None:
    """Data, its name, the name's folder, and only then the journal; the result's name at last."""
    with failing_disk() as disk:
        convert(place / "model")
    log = [(call, name) for call, name in disk.log if call not in ("open", "close", "pread")]
    shard, journal, folder = plans()[0].file_name, "model.unfinished.journal", "model.unfinished"
    assert log[log.index(("mkdir", folder)) - 3 :][:12] == [
        ("pwrite", journal),
        ("fsync", journal),
        ("fsync", "place"),
        ("mkdir", folder),
        ("statvfs", folder),
        ("pwrite", f"{shard}.part"),
        ("pwrite", f"{shard}.part"),
        ("pwrite", f"{shard}.part"),
        ("fsync", f"{shard}.part"),
        ("replace", f"{shard}.part"),
        ("fsync", folder),
        ("pwrite", journal),
    ]
    assert (
        log[-9:]
        == [
            ("pwrite", "conversion.json.part"),
            ("fsync", "conversion.json.part"),
            ("replace", "conversion.json.part"),
            ("fsync", folder),
            ("listdir", "model"),
            ("fsync", folder),
            ("rename", folder),
            ("fsync", "place"),
            ("unlink", journal),
            ("fsync", "place"),
        ][-9:]
    )


def test_an_empty_folder_is_taken(place: Path, whole: dict[str, Files]) -> None:
    (place / "model").mkdir()
    convert(place / "model")
    assert files(place / "model") == whole["one"]


def test_a_linked_destination_is_made_where_the_link_points(
    place: Path, whole: dict[str, Files]
) -> None:
    (place / "disk").mkdir()
    (place / "model").symlink_to(place / "disk" / "there")
    convert(place / "model")
    assert files(place / "disk" / "there") == whole["one"]
    assert os.listdir(place / "disk") == ["there"]


def test_a_run_that_makes_nothing_leaves_nothing(place: Path) -> None:
    interrupt(place / "model", after=0)
    assert os.listdir(place) == []


def test_the_source_is_left_as_it_was(place: Path) -> None:
    source = place.parent / "source"
    (source / "weights").write_bytes(b"w")
    before = os.stat(source).st_mtime_ns
    convert(place / "model")
    assert files(source) == {"weights": b"w"}
    assert os.stat(source).st_mtime_ns == before


# ---- continuing (case 37, R2) ----


@pytest.mark.parametrize("after", range(1, SHARDS))
def test_recorded_shards_are_kept(place: Path, whole: dict[str, Files], after: int) -> None:
    interrupt(place / "model", after=after)
    assert not (place / "model").exists()
    names = [plan.file_name for plan in plans()]
    stamps = [os.stat(place / "model.unfinished" / name).st_ino for name in names[:after]]
    assert convert(place / "model") == names[after:]
    assert files(place / "model") == whole["one"]
    assert [os.stat(place / "model" / name).st_ino for name in names[:after]] == stamps


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_a_recorded_shard_that_changed_is_made_again(
    place: Path, whole: dict[str, Files], damage: str
) -> None:
    interrupt(place / "model", after=2)
    name = plans()[0].file_name
    shard = place / "model.unfinished" / name
    data = shard.read_bytes()
    if damage == "remove":
        shard.unlink()
    else:
        changed = {"flip": data[:-1] + b"?", "cut": data[:-1], "grow": data + b"\0"}
        shard.write_bytes(changed[damage])
    assert convert(place / "model") == [name, plans()[2].file_name]
    assert files(place / "model") == whole["one"]


def test_what_is_not_recorded_is_not_in_the_result(place: Path, whole: dict[str, Files]) -> None:
    interrupt(place / "model", after=1)
    others = ("model.safetensors", "config.json", "README.md.part", ".DS_Store", "._config.json")
    for name in (*others, plans()[2].file_name):
        (place / "model.unfinished" / name).write_bytes(b"stray")
    convert(place / "model")
    assert files(place / "model") == whole["one"]


def test_an_entry_is_the_same_for_every_run(place: Path) -> None:
    """JSON has no tuples; a result made of entries must not depend on who recorded them."""
    folder = place / "model"
    source = place.parent / "source"
    digest = hashlib.sha256(b"data").hexdigest()
    entries = []
    for _ in range(2):
        with Staging(folder, source=source, fingerprint="f", overwrite=False) as staging:
            if not staging.done:
                (staging.folder / "model.safetensors").write_bytes(b"data")
                staging.record("model.safetensors", {"sha256": digest, "shape": (1, 0.1)})
            entries.append(staging.done["model.safetensors"])
    assert entries == [{"sha256": digest, "shape": [1, 0.1]}] * 2


def test_other_settings_do_not_continue_it(place: Path, whole: dict[str, Files]) -> None:
    interrupt(place / "model", after=2)
    before = files(place)
    with pytest.raises(OptionError, match="other settings; give those to continue it, --overwrite"):
        convert(place / "model", recipe="two")
    assert files(place) == before
    convert(place / "model", recipe="two", overwrite=True)
    assert files(place) == {f"model/{name}": data for name, data in whole["two"].items()}


def test_nothing_made_binds_to_no_settings(place: Path, whole: dict[str, Files]) -> None:
    with failing_disk() as disk:
        convert(place / "model")
    clear(place)
    number = disk.log.index(("mkdir", "model.unfinished"))
    with failing_disk(number, Killed(), afterwards=True), pytest.raises(Killed):
        convert(place / "model")
    assert len(os.listdir(place)) == 2
    convert(place / "model", recipe="two")
    assert files(place / "model") == whole["two"]


# ---- any call may fail, any moment may be the last (R1) ----


ENDS = [
    (OSError(errno.ENOSPC, "No space left on device"), False),
    (KeyboardInterrupt(), True),
    (Killed(), False),
    (Killed(), True),
]


@contextmanager
def ends(error: BaseException, log: list[tuple[str, str]], number: int) -> Iterator[None]:
    """Expect what an error at this call means: once the result has its name, only a warning."""
    named = log.index(("rename", "model.unfinished"))
    flushed = log.index(("close", "place"), named)
    if not isinstance(error, OSError):
        with pytest.raises(type(error)):
            yield
    elif number > flushed:
        with pytest.warns(GLMWarning, match=r"model is finished, but .*could not be removed"):
            yield
    else:
        with pytest.raises(ResourceError):
            yield


@pytest.mark.parametrize(("error", "afterwards"), ENDS)
def test_every_call_may_be_the_last(
    place: Path, whole: dict[str, Files], error: BaseException, afterwards: bool
) -> None:
    destination = place / "model"
    with failing_disk() as disk:
        convert(destination)
    for number, call in enumerate(disk.log):
        clear(place)
        with failing_disk(number, error, afterwards=afterwards), ends(error, disk.log, number):
            convert(destination)
        if destination.exists():
            assert files(destination) == whole["one"], call
            with pytest.raises(OptionError, match="finished"):
                convert(destination)
        else:
            begun = len(list(place.glob("model.unfinished/*.safetensors")))
            assert len(convert(destination)) <= SHARDS - max(0, begun - 1), call
        assert files(destination) == whole["one"], call
        assert os.listdir(place) == ["model"], call


@pytest.mark.parametrize(("error", "afterwards"), ENDS)
def test_every_call_of_a_replacement_may_be_the_last(
    place: Path, whole: dict[str, Files], error: BaseException, afterwards: bool
) -> None:
    """The old result or the new one, whole; or neither for the moment, until the next run."""
    destination = place / "model"
    convert(destination)
    with failing_disk() as disk:
        convert(destination, recipe="two", overwrite=True)
    for number, call in enumerate(disk.log):
        clear(place)
        convert(destination)
        with failing_disk(number, error, afterwards=afterwards), ends(error, disk.log, number):
            convert(destination, recipe="two", overwrite=True)
        if destination.exists():
            assert files(destination) in (whole["one"], whole["two"]), call
        else:
            assert files(place / "model.replaced") == whole["one"], call
            assert files(place / "model.unfinished") == whole["two"], call
        with pytest.raises(OptionError, match="finished"):
            convert(destination, recipe="two")
        assert files(destination) in (whole["one"], whole["two"]), call
        convert(destination, recipe="two", overwrite=True)
        assert files(destination) == whole["two"], call
        assert os.listdir(place) == ["model"], call


@pytest.mark.parametrize(("error", "afterwards"), ENDS)
def test_every_call_of_a_continuation_may_be_the_last(
    place: Path, whole: dict[str, Files], error: BaseException, afterwards: bool
) -> None:
    destination = place / "model"
    interrupt(destination, after=2)
    (place / "model.unfinished" / "config.json.part").write_bytes(b"cut")
    with failing_disk() as disk:
        convert(destination)
    for number, call in enumerate(disk.log):
        clear(place)
        interrupt(destination, after=2)
        (place / "model.unfinished" / "config.json.part").write_bytes(b"cut")
        with failing_disk(number, error, afterwards=afterwards), ends(error, disk.log, number):
            convert(destination)
        if not destination.exists():
            assert len(convert(destination)) <= 1, call
        else:
            with pytest.raises(OptionError, match="finished"):
                convert(destination)
        assert files(destination) == whole["one"], call
        assert os.listdir(place) == ["model"], call


def clear(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    assert os.listdir(place) == []
