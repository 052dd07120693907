"""Which folders open and which are refused: what they hold, what the index says, where links lead.

The number that begins a test's id is its kind of damage, in the numbered list of bad inputs that
tests/cli/test_catalogue.py and test_catalogue_shards.py spell out.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from glm_mlx.checkpoint import Checkpoint
from glm_mlx.errors import CheckpointError

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PLACES = {"a": ONE, "b": ONE, "c": TWO}


def write_shard(file: Path, *names: str) -> None:
    save_file({name: np.ones(4, np.float32) for name in names}, file)


def write_index(folder: Path, places: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and the index that names them."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_shard(folder / ONE, "a", "b")
    write_shard(folder / TWO, "c")
    write_index(folder, PLACES)
    return folder


@contextmanager
def refused(file: Path, *fragments: str, field: str | None = None) -> Iterator[None]:
    with pytest.raises(CheckpointError) as caught:
        yield
    assert caught.value.file == str(file)
    assert str(caught.value).isprintable()
    for fragment in (file.name, *fragments):
        assert fragment in str(caught.value)
    if field is not None:
        assert caught.value.field == field


def places(folder: Path) -> Mapping[str, str]:
    return {name: info.file.name for name, info in Checkpoint.open(folder).tensors.items()}


# ---- what opens ----


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dialect", ["chatglm", "glm", "glm4"])
def test_every_layout_opens(make_folder: Callable[..., Path], dialect: str, shards: int) -> None:
    folder = make_folder(dialect, shards=shards)
    checkpoint = Checkpoint.open(folder)
    assert len({info.file for info in checkpoint.tensors.values()}) == shards
    assert checkpoint.read().keys() == checkpoint.tensors.keys()


def test_index_and_shards(folder: Path) -> None:
    assert places(folder) == PLACES


def test_whole_set_without_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    assert places(folder) == PLACES


def test_index_of_a_single_file(folder: Path) -> None:
    for name in (ONE, TWO):
        (folder / name).unlink()
    write_shard(folder / "model.safetensors", "a")
    write_index(folder, {"a": "model.safetensors"})
    assert places(folder) == {"a": "model.safetensors"}


def test_index_may_name_shards_as_it_likes(folder: Path) -> None:
    (folder / TWO).rename(folder / "weights.safetensors")
    write_index(folder, {**PLACES, "c": "weights.safetensors"})
    assert places(folder)["c"] == "weights.safetensors"


@pytest.mark.parametrize(
    "other", ["adapters.safetensors", "pytorch_model.bin", "glm.gguf", "README.md", "readme.md"]
)
def test_other_files_beside_the_shards_are_left_alone(folder: Path, other: str) -> None:
    os.mkfifo(folder / other)  # opening it would block for ever
    assert places(folder) == PLACES


def test_folder_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert places(tmp_path / "link") == PLACES


def test_link_inside_the_folder(folder: Path) -> None:
    (folder / TWO).rename(folder / "stored")
    (folder / TWO).symlink_to("stored")
    assert places(folder) == PLACES


@pytest.mark.parametrize("blobs_elsewhere", [False, True])
def test_hub_cache(folder: Path, tmp_path: Path, blobs_elsewhere: bool) -> None:
    repository = tmp_path / "models--zai-org--glm"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    snapshot.mkdir(parents=True)
    if blobs_elsewhere:
        (tmp_path / "volume").mkdir()
        blobs.symlink_to(tmp_path / "volume")
    else:
        blobs.mkdir()
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert places(snapshot) == PLACES
    assert Checkpoint.open(snapshot).read().keys() == PLACES.keys()


# ---- what does not ----


def test_1_folder_absent(tmp_path: Path) -> None:
    with refused(tmp_path / "no", "cannot be read: No such file or directory; check the path"):
        Checkpoint.open(tmp_path / "no")


def test_1_folder_is_a_file(folder: Path) -> None:
    with refused(folder / ONE, "cannot be read: Not a directory"):
        Checkpoint.open(folder / ONE)


@pytest.mark.parametrize(
    ("names", "fragments"),
    [
        pytest.param([], ["holds no weights; expected model.safetensors or"], id="empty"),
        pytest.param(["config.json"], ["holds no weights"], id="no weights"),
        pytest.param(
            ["pytorch_model.bin"],
            ["pickle", "'pytorch_model.bin'", "never opened", "safe_serialization=True"],
            id="16 one pickle",
        ),
        pytest.param(
            [f"pytorch_model-0000{i}-of-00007.bin" for i in range(1, 8)],
            ["pickle", "'pytorch_model-00005-of-00007.bin' and 2 more)", "safetensors revision"],
            id="16 seven pickles",
        ),
        pytest.param(["model.PT"], ["pickle", "'model.PT'"], id="16 upper case"),
        pytest.param(["consolidated.00.pth"], ["pickle"], id="16 pth"),
        pytest.param(
            ["glm-4-9b.Q4_K.gguf"], ["GGUF", "'glm-4-9b.Q4_K.gguf'", "get the"], id="17 GGUF"
        ),
        pytest.param(
            ["weights.safetensors", "x.bin"],
            ["holds 'weights.safetensors'; rename to model.safetensors or model-0"],
            id="23 another name",
        ),
        pytest.param(["Model.safetensors"], ["rename"], id="21 another case"),
        pytest.param(
            ["model.safetensors", ONE, TWO], ["are not one set", "to choose by"], id="23 two sets"
        ),
        pytest.param(
            [ONE, "model-00002-of-00003.safetensors"], ["are not one set"], id="23 mixed sets"
        ),
        pytest.param(["model.fp16.safetensors"], ["are not one set"], id="23 variant"),
        pytest.param([TWO], [f"lacks '{ONE}'; download what is missing"], id="23 first missing"),
        pytest.param(
            ["model-00002-of-00099.safetensors"],
            ["lacks 'model-00001-of-00099.safetensors', ", "00006-of-00099.", " and 93 more; down"],
            id="23 most missing",
        ),
        pytest.param(
            [ONE, TWO, "model-00003-of-00002.safetensors"],
            ["holds 'model-00003-of-00002.safetensors', beyond the last shard"],
            id="23 one too many",
        ),
    ],
)  # fmt: skip
def test_names_alone_refuse(tmp_path: Path, names: list[str], fragments: list[str]) -> None:
    for name in names:
        os.mkfifo(tmp_path / name)
    with refused(tmp_path, *fragments):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    "names", [["MODEL.safetensors", "model.safetensors"], [INDEX.upper(), ONE, INDEX]]
)
def test_21_names_that_differ_only_in_case(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "listdir", lambda _: names)  # a Mac's volume could not hold both
    with refused(tmp_path, f"'{names[0]}' and '{names[-1]}' differ only in case", "keep one"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", [ONE, INDEX])
@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder"])
def test_20_no_regular_file(
    folder: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / name).unlink()
    if kind == "FIFO":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        monkeypatch.chdir(folder)  # a socket's path has 108 bytes at most
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    with refused(folder / name, ", not a regular file"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", [ONE, INDEX])
@pytest.mark.parametrize("target", ["/etc/hosts", "../outside", "/dev/zero"])
def test_19_link_out_of_the_folder(folder: Path, name: str, target: str) -> None:
    shutil.copy(folder / name, folder.parent / "outside")
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    with refused(folder / name, "is a link out of the folder, to ", "put the file itself here"):
        Checkpoint.open(folder)


def test_19_hub_link_past_the_blobs(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(folder / ONE)
    with refused(snapshot / "model.safetensors", "is a link out of the folder"):
        Checkpoint.open(snapshot)


@pytest.mark.parametrize(
    ("target", "said"), [("nowhere", "is a link to nothing"), (ONE, "cannot be read: ")]
)
def test_19_link_to_nothing_or_itself(folder: Path, target: str, said: str) -> None:
    (folder / ONE).unlink()
    (folder / ONE).symlink_to(target)
    with refused(folder / ONE, said):
        Checkpoint.open(folder)


# ---- index and shards ----


def test_23_shard_missing(folder: Path) -> None:
    (folder / TWO).unlink()
    with refused(folder / INDEX, f"names '{TWO}', which the folder lacks; download"):
        Checkpoint.open(folder)


def test_23_shard_renamed(folder: Path) -> None:
    (folder / TWO).rename(folder / "model-2.safetensors")
    with refused(folder / INDEX, f"names '{TWO}'", "does hold 'model-2.safetensors'"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("stale", ["model.safetensors", "model-00009-of-00009.safetensors"])
def test_23_stale_shard(folder: Path, stale: str) -> None:
    write_shard(folder / stale, "a")
    with refused(folder, f"holds '{stale}', which {INDEX} does not name; remove"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("with_index", [True, False])
def test_23_two_files_with_one_tensor(folder: Path, with_index: bool) -> None:
    write_shard(folder / TWO, "c", "a")
    if not with_index:
        (folder / INDEX).unlink()
    with refused(folder / TWO, "tensor 'a'", f"is in {ONE} too; remove", field="a"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "place",
    ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "..\\x.safetensors",
     "C:x.safetensors", ".x.safetensors", ".safetensors", "x.bin", "", "..", "x\n.safetensors",
     "x.safetensors\0", 3, None, ["x.safetensors"]],
)  # fmt: skip
def test_24_index_entry_that_is_no_plain_name(folder: Path, place: object) -> None:
    write_index(folder, {**PLACES, "b": place})
    with refused(
        folder / INDEX, "tensor 'b': ", "is not the plain name of a .safetensors file", field="b"
    ):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "is empty"),
        (b"{", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b"\xff", "not UTF-8"),
        (b"[" * 10**6, "nested more than 100"),
        (b'{"weight_map":{"a":"x","a":"y"}}', "key 'a' appears twice"),
        (b"{}", "weight_map None must be an object"),
        (b'{"weight_map":[]}', "weight_map [] must be an object"),
        (b'{"weight_map":{}}', "weight_map {} must be an object"),
        (b" " * 4_000_001, "is larger than 4,000,000 bytes"),
    ],
)
def test_24_index_that_is_no_index(folder: Path, content: bytes, fragment: str) -> None:
    (folder / INDEX).write_bytes(content)
    with refused(folder / INDEX, fragment):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("changes", "fragment", "field"),
    [
        ({"a": TWO}, f"tensor 'a': is in {ONE}, not in {TWO}; download", "a"),
        ({"d": TWO}, "names tensors that no shard holds: 'd'; download", "d"),
        ({"b": None}, "does not name tensors that its shards hold: 'b'; download", "b"),
        ({str(i): ONE for i in range(9)}, "'0', '1', '2', '3', '4' and 4 more; download", "0"),
    ],
)
def test_25_index_and_shards_disagree(
    folder: Path, changes: dict[str, str | None], fragment: str, field: str
) -> None:
    write_index(folder, {name: file for name, file in {**PLACES, **changes}.items() if file})
    with refused(folder / INDEX, fragment, field=field):
        Checkpoint.open(folder)
