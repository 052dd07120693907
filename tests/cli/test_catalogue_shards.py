"""Weights that are wrong, through the whole program: shards, headers, index, values.

The numbered list of bad inputs, continued; the number that begins a test's id is its kind. Here:
22 cut short, 23 shards that are missing or too many, 24 what the index names, 25 index and shards
that disagree, 26 header length, 27 header syntax, 28 bytes that overlap or are nobody's, 29 shapes,
30 offsets, 31 dtypes, 32 dtypes of the wrong role, 33 tensors that are missing or do not fit,
34 values that are no numbers, 35 checksums, 36 a file that changes while it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import Result
from makers.folders import FolderMaker, Tensors

from glm_mlx.cli import terminal

Run = Callable[..., Result]
Refused = Callable[..., str]
Damage = Callable[[Path], object]
Header = dict[str, Any]
ONE = "model.safetensors"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
BAD_INPUT, NOT_FINITE = 3, 6
NORM, HEAD = "model.norm.weight", "lm_head.weight"


def parts(file: Path) -> tuple[bytes, bytes]:
    """The header and the data of a shard."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return raw[8 : 8 + length], raw[8 + length :]


def header_bytes(make: Callable[[bytes], bytes], *, length: int | None = None) -> Damage:
    """Put other bytes in the place of the header, announced with their true length or another."""

    def damage(folder: Path) -> None:
        header, data = parts(folder / ONE)
        made = make(header)
        announced = struct.pack("<Q", len(made) if length is None else length)
        (folder / ONE).write_bytes(announced + made + data)

    return damage


def header(change: Callable[[Header], object]) -> Damage:
    def make(raw: bytes) -> bytes:
        table = json.loads(raw)
        change(table)
        return json.dumps(table).encode()

    return header_bytes(make)


def entry(name: str, **values: object) -> Damage:
    return header(lambda table: table[name].update(values))


def shift(name: str, start: int, stop: int) -> Damage:
    """Move one tensor's offsets by a few bytes."""

    def change(table: Header) -> None:
        old = table[name]["data_offsets"]
        table[name]["data_offsets"] = [old[0] + start, old[1] + stop]

    return header(change)


def cut(size: Callable[[int], int]) -> Damage:
    return lambda folder: os.truncate(folder / ONE, size((folder / ONE).stat().st_size))


def append(folder: Path) -> None:
    with (folder / ONE).open("ab") as stream:
        stream.write(b"more")


def reverse(table: Header) -> None:
    table[NORM]["data_offsets"].reverse()


def place(change: Callable[[dict[str, str]], object]) -> Damage:
    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def copy(source: str, target: str) -> Damage:
    return lambda folder: (folder / target).write_bytes((folder / source).read_bytes())


HEADERS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "22-in-header": (cut(lambda size: 100), ()),
    "22-in-length": (cut(lambda size: 5), ()),
    "22-mid-tensor": (cut(lambda size: size // 2), ()),
    "22-last-byte": (cut(lambda size: size - 1), ()),
    "22-nothing-left": (cut(lambda size: 0), ()),
    "26-length-zero": (header_bytes(lambda raw: raw, length=0), ()),
    "26-length-200-MB": (header_bytes(lambda raw: raw, length=200_000_000), ()),
    "26-length-2**63": (header_bytes(lambda raw: raw, length=2**63), ()),
    "27-not-json": (header_bytes(lambda raw: b"{" * len(raw)), ("JSON",)),
    "27-not-utf8": (header_bytes(lambda raw: raw.replace(b"norm", b"n\xffrm")), ("UTF-8",)),
    "27-deep": (header_bytes(lambda raw: b'{"a":' * 100_000 + b"1" + b"}" * 100_000), ()),
    "28-overlap": (shift(NORM, -8, -8), ()),
    "28-gap": (shift(NORM, 8, 8), ()),
    "28-trailing": (append, ()),
    "28-duplicate": (
        header_bytes(lambda raw: raw.replace(HEAD.encode(), NORM.encode())),
        (NORM,),
    ),
    "29-negative": (entry(NORM, shape=[-64]), (NORM,)),
    "29-huge": (entry(NORM, shape=[2**62]), (NORM,)),
    "29-wraps-to-nothing": (entry(NORM, shape=[65536] * 4), (NORM,)),
    "29-dimensions": (entry(NORM, shape=[1] * 1000 + [64]), (NORM,)),
    "30-reversed": (header(reverse), (NORM,)),
    "30-wrapping": (entry(NORM, data_offsets=[2**64 - 256, 2**64]), ()),
    "31-unknown": (entry(NORM, dtype="F99"), (NORM, "F99")),
    "31-fp8": (entry(NORM, dtype="F8_E4M3"), (NORM, "F8_E4M3")),
    "32-integer-norm": (entry(NORM, dtype="I32"), (NORM, "I32")),
    "33-renamed": (header(lambda table: table.update(x=table.pop(NORM))), (NORM,)),
    "33-shape": (entry(NORM, shape=[8, 8]), (NORM, "(8, 8)", "(64,)")),
}
FOLDERS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "23-missing": (lambda folder: (folder / SECOND).unlink(), (SECOND,)),
    "23-renamed": (
        lambda folder: (folder / SECOND).rename(folder / "model-b.safetensors"),
        (SECOND,),
    ),
    "23-stale": (copy(FIRST, "model-00003-of-00003.safetensors"), ("model-00003-of-00003",)),
    "23-tensor-twice": (copy(FIRST, SECOND), (SECOND,)),
    "24-missing-file": (
        place(lambda places: places.update({NORM: "model-9.safetensors"})),
        ("model-9",),
    ),
    "24-parent": (place(lambda places: places.update({NORM: "../x.safetensors"})), (NORM, "../x")),
    "24-absolute": (place(lambda places: places.update({NORM: "/x.safetensors"})), (NORM, "/x")),
    "24-backslash": (place(lambda places: places.update({NORM: "a\\x.safetensors"})), (NORM,)),
    "24-drive": (place(lambda places: places.update({NORM: "C:x.safetensors"})), (NORM, "C:x")),
    "24-other-kind": (
        place(lambda places: places.update({NORM: "model.bin"})),
        (NORM, "model.bin"),
    ),
    "25-elsewhere": (place(lambda places: places.update({NORM: FIRST, HEAD: FIRST})), (INDEX,)),
    "25-unlisted": (place(lambda places: places.pop(NORM)), (INDEX, NORM)),
}


@pytest.mark.parametrize(("damage", "named"), HEADERS.values(), ids=HEADERS)
def test_header(
    refused: Refused, make_folder: FolderMaker, damage: Damage, named: tuple[str, ...]
) -> None:
    folder = make_folder("glm4")
    damage(folder)
    line = refused("generate", "--model", str(folder), "-p", "Hi", code=BAD_INPUT)
    for part in (str(folder), *named):
        assert part in line
    assert refused("info", "--model", str(folder), code=BAD_INPUT) == line


@pytest.mark.parametrize(("damage", "named"), FOLDERS.values(), ids=FOLDERS)
def test_folder(
    refused: Refused, make_folder: FolderMaker, damage: Damage, named: tuple[str, ...]
) -> None:
    folder = make_folder("glm4", shards=2)
    damage(folder)
    line = refused("generate", "--model", str(folder), "-p", "Hi", code=BAD_INPUT)
    for part in (str(folder), *named):
        assert part in line


def test_case_24_absent_index_of_one_file(run: Run, make_folder: FolderMaker) -> None:
    folder = make_folder("glm4")
    assert not (folder / INDEX).exists()
    assert run("generate", "--model", str(folder), "-p", "Hi", "-m", "1").exit_code == 0


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda tensors: [tensors.pop(n) for n in list(tensors) if "proj.w" in n], "and 7 more"),
        (lambda tensors: tensors.update({f"x{n}": mx.zeros(4) for n in range(9)}), "and 4 more"),
    ],
    ids=["33-missing", "33-extra"],
)
def test_lists_stop_at_five_names(
    refused: Refused, make_folder: FolderMaker, edit: Callable[[Tensors], object], named: str
) -> None:
    folder = make_folder("glm4", edit_tensors=edit)
    assert named in refused("info", "--model", str(folder), code=BAD_INPUT)


def poison(tensors: Tensors) -> None:
    tensors[NORM] = mx.array([float("nan")] * 2 + [1.0] * 62)


def test_case_34_values_that_are_no_numbers(
    run: Run, refused: Refused, make_folder: FolderMaker
) -> None:
    folder = make_folder("glm4", edit_tensors=poison)
    assert run("info", "--model", str(folder)).exit_code == 0
    result = run("info", "--model", str(folder), "--check")
    assert result.exit_code == NOT_FINITE
    assert "1 tensor" in result.stdout
    (line,) = result.stderr.splitlines()
    assert NORM in line
    assert "2 of 64 values" in line
    refused("generate", "--model", str(folder), "-p", "Hi", code=NOT_FINITE)


def test_case_35_checksums(run: Run, refused: Refused, make_folder: FolderMaker) -> None:
    folder = make_folder("glm4")
    right = hashlib.sha256((folder / ONE).read_bytes()).hexdigest()
    manifest = {"algorithm": "sha256", "files": {ONE: right}}
    (folder / "checksums.json").write_text(json.dumps(manifest))
    assert run("info", "--model", str(folder), "--check").exit_code == 0
    manifest["files"] = {ONE: right[::-1]}
    (folder / "checksums.json").write_text(json.dumps(manifest))
    line = refused("info", "--model", str(folder), "--check", code=BAD_INPUT)
    assert str(folder / ONE) in line
    assert "sha256" in line


def test_case_36_a_file_that_changes(
    refused: Refused, make_folder: FolderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder("glm4")

    def touch(self: object, done: int, total: int) -> None:
        os.utime(folder / ONE, ns=(0, 0))

    monkeypatch.setattr(terminal.Progress, "__call__", touch)
    line = refused("info", "--model", str(folder), "--check", code=BAD_INPUT)
    assert str(folder / ONE) in line
    assert "changed" in line
