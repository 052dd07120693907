"""One damaged file after another: each refused, with the file, the tensor and what is wrong.

The number that begins a test's id is its kind of damage, in the numbered list of bad inputs that
tests/cli/test_catalogue.py and test_catalogue_shards.py spell out.
"""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from glm_mlx.checkpoint import Checkpoint, TensorInfo
from glm_mlx.errors import CheckpointError

NAME = "model.norm.weight"


def refusal(folder: Path, content: bytes) -> CheckpointError:
    """Return what opening a folder with this one file raises, and hold what holds for all."""
    file = folder / "model.safetensors"
    file.write_bytes(content)
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert time.process_time() - start < 2
    assert str(caught.value).startswith(str(file))
    assert str(caught.value).isprintable()
    assert caught.value.file == str(file)
    assert caught.value.exit_code == 3
    return caught.value


def pack(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype: object = "U8", shape: object = (8,), offsets: object = (0, 8)) -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": offsets})


ENTRY = entry()
GOOD = save({NAME: np.arange(64, dtype=np.float32), "model.other": np.zeros(8, np.float32)})
GOOD_HEADER = 8 + int.from_bytes(GOOD[:8], "little")


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        pytest.param(b"", "truncated: 8 bytes expected, 0 found; download", id="22 empty"),
        pytest.param(GOOD[:5], "truncated: 8 bytes expected, 5 found", id="22 in the length"),
        pytest.param(GOOD[:40], f"{GOOD_HEADER} bytes expected, 40 found", id="22 in the header"),
        pytest.param(
            GOOD[:GOOD_HEADER], f"truncated in tensor '{NAME}'", id="22 between header and data"
        ),
        pytest.param(
            GOOD[: GOOD_HEADER + 100],
            f"truncated in tensor '{NAME}': {len(GOOD)} bytes expected, {GOOD_HEADER + 100} found",
            id="22 in a tensor",
        ),
        pytest.param(
            GOOD[:-1],
            f"truncated in tensor 'model.other': {len(GOOD)} bytes expected, {len(GOOD) - 1} found",
            id="22 last byte",
        ),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a Git LFS pointer, not weights; run `git lfs pull`",
            id="18 LFS pointer",
        ),
        pytest.param(struct.pack("<Q", 0), "header length 0 is outside", id="26 length 0"),
        pytest.param(
            struct.pack("<Q", 4_000_001) + GOOD[8:],
            "header length 4,000,001 is outside 2 to 4,000,000; not a safetensors file, or damaged",
            id="26 length over the limit",
        ),
        pytest.param(b"\xff" * 64, "header length 18,446,744,073,709,551,615 is", id="26 2^64-1"),
        pytest.param(
            struct.pack("<Q", len(GOOD)) + GOOD[8:],
            f"truncated: {len(GOOD) + 8} bytes expected, {len(GOOD)} found",
            id="26 length over the file",
        ),
        pytest.param(b"PK\x03\x04" + bytes(60), "not a safetensors file", id="16 renamed pickle"),
        pytest.param(pack('{"a": }'), "not JSON: Expecting value at line 1", id="27 not JSON"),
        pytest.param(pack(b'{"\xff": 1}'), "not UTF-8: byte 0xff", id="27 bad UTF-8"),
        pytest.param(pack('{"a":' + "[" * 99_999), "nested more than", id="27 deep, cut"),
        pytest.param(
            pack('{"a":' + "[" * 200 + "]" * 200 + "}"), "nested more than 100", id="27 deep"
        ),
        pytest.param(pack("[1, 2, 3]"), "header starts with b'['", id="27 a list"),
        pytest.param(pack(' {"a": 1}'), "header starts with b' '", id="27 leading space"),
        pytest.param(pack("\ufeff{}"), "header starts with", id="27 byte order mark"),
        pytest.param(pack("{}"), "holds no tensors", id="33 none"),
        pytest.param(pack('{"__metadata__":{"a":"b"}}'), "holds no tensors", id="33 metadata only"),
        pytest.param(
            pack('{"__metadata__":{"step":3},"a":' + ENTRY + "}", bytes(8)),
            "__metadata__ must map strings to strings",
            id="27 metadata value",
        ),
        pytest.param(
            pack('{"__metadata__":[],"a":' + ENTRY + "}", bytes(8)),
            "__metadata__ must map",
            id="27 metadata list",
        ),
        pytest.param(
            pack('{"__metadata__":{"a":"\\ud800"},"a":' + ENTRY + "}", bytes(8)),
            "__metadata__ must map",
            id="27 metadata surrogate",
        ),
        pytest.param(
            pack(f'{{"twice":{ENTRY},"twice":{ENTRY}}}', bytes(8)),
            "key 'twice' appears twice",
            id="28 duplicate tensor",
        ),
        pytest.param(
            pack('{"a":{"dtype":"U8","dtype":"U8","shape":[8],"data_offsets":[0,8]}}', bytes(8)),
            "key 'dtype' appears twice",
            id="28 duplicate key",
        ),
        pytest.param(GOOD + b"12345", "5 bytes follow the last tensor", id="28 trailing bytes"),
        pytest.param(
            pack('{"a":' + ENTRY.replace("[0,", "[-0,") + "}", bytes(8)), "number -0", id="29 -0"
        ),
    ],
)  # fmt: skip
def test_damaged_file_is_refused(tmp_path: Path, content: bytes, fragments: str) -> None:
    assert fragments in str(refusal(tmp_path, content))


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        pytest.param("null", "has None; expected dtype, shape and data_offsets", id="27 null"),
        pytest.param("[1]", "has [1]; expected dtype", id="27 list"),
        pytest.param('{"dtype":"U8"}', "has ['dtype']; expected dtype, shape", id="27 keys absent"),
        pytest.param(entry()[:-1] + ',"x":1}', "'x']; expected dtype", id="27 key too many"),
        pytest.param(entry(shape=[-8]), "shape [-8] must be at most 8 integers", id="29 negative"),
        pytest.param(entry(shape=[2**31]), "[2147483648] must be at most 8 integers", id="29 2^31"),
        pytest.param(entry(shape=[1] * 1000), "at most 8 integers", id="29 1,000 dimensions"),
        pytest.param(entry(shape=[8.0]), "shape [8.0] must be", id="29 float"),
        pytest.param(entry(shape=[True]), "shape [True] must be", id="29 boolean"),
        pytest.param(entry(shape="8"), "shape '8' must be", id="29 string"),
        pytest.param(entry(shape=8), "shape 8 must be", id="29 number"),
        pytest.param(entry(shape=None), "shape None must be", id="29 null"),
        pytest.param(entry(shape=[10**400]), "shape [1000", id="29 400 digits"),
        pytest.param(
            entry(shape=[65536] * 4, offsets=[0, 0]),
            "of U8 takes 18,446,744,073,709,551,616 bytes, data_offsets [0, 0] hold 0",
            id="29 product wraps to 0",
        ),
        pytest.param(entry("F32", [2**31 - 1] * 8), "data_offsets [0, 8] hold 8", id="29 2^248"),
        pytest.param(entry(shape=[4]), "shape [4] of U8 takes 4 bytes", id="29 shape too small"),
        pytest.param(entry("F32"), "shape [8] of F32 takes 32 bytes", id="29 dtype too wide"),
        pytest.param(entry(offsets=[8, 0]), "[8, 0] must be [start, stop]", id="30 reversed"),
        pytest.param(entry(offsets=[-8, 0]), "[-8, 0] must be [start, stop]", id="30 negative"),
        pytest.param(
            entry(offsets=[2**64 - 8, 2**64]), "must be [start, stop], 0 <= start", id="30 wrapping"
        ),
        pytest.param(entry(offsets=[0]), "[0] must be [start, stop]", id="30 one"),
        pytest.param(entry(offsets=[0, 4, 8]), "[0, 4, 8] must be", id="30 three"),
        pytest.param(entry(offsets=[0, 8.0]), "[0, 8.0] must be", id="30 float"),
        pytest.param(entry(offsets=[10**400, 10**400 + 8]), "must be [start", id="30 400 digits"),
        pytest.param(entry(offsets=[4, 12]), "leaves a gap of 4 bytes before it", id="28 gap"),
        pytest.param(
            entry(offsets=[10**15, 10**15 + 8]), "leaves a gap of 1,000,000", id="30 out of file"
        ),
        pytest.param(entry("F8_E4M3"), "dtype 'F8_E4M3' is not supported; get or", id="31 fp8"),
        pytest.param(entry("F4"), "dtype 'F4' is not supported", id="31 fp4"),
        pytest.param(entry("F64", [1]), "dtype 'F64' is not supported", id="31 F64"),
        pytest.param(entry("C64", [1]), "in BF16, F16 or F32 (readable: BF16", id="31 complex"),
        pytest.param(entry("bfloat16"), "dtype 'bfloat16' is not supported", id="31 unknown"),
        pytest.param(entry(7), "dtype 7 is not supported", id="31 number"),
        pytest.param(entry(["U8"]), "dtype ['U8'] is not supported", id="31 list"),
    ],
)  # fmt: skip
def test_bad_entry_names_the_tensor(tmp_path: Path, body: str, fragment: str) -> None:
    error = refusal(tmp_path, pack(f'{{"{NAME}":{body}}}', bytes(8)))
    assert f"tensor '{NAME}': " in str(error)
    assert fragment in str(error)
    assert error.field == NAME


@pytest.mark.parametrize(
    ("offsets", "fragment"),
    [
        pytest.param([4, 12], "overlaps another by 4 bytes", id="28 partly"),
        pytest.param([0, 8], "overlaps another by 8 bytes", id="28 wholly"),
        pytest.param([9, 17], "leaves a gap of 1 bytes before it", id="28 gap"),
    ],
)
def test_second_tensor_starts_where_the_first_ends(
    tmp_path: Path, offsets: list[int], fragment: str
) -> None:
    header = f'{{"first":{entry()},"second":{entry(offsets=offsets)}}}'
    error = refusal(tmp_path, pack(header, bytes(offsets[1])))
    assert f"tensor 'second': {fragment}" in str(error)
    assert error.field == "second"


@pytest.mark.parametrize("name", ["a\\nb", "a\\u001b[31m", "\\ud800", "\\u202e"])
def test_name_that_cannot_be_printed_is_refused_and_shown_escaped(
    tmp_path: Path, name: str
) -> None:
    error = refusal(tmp_path, pack(f'{{"{name}":{entry()}}}', bytes(8)))
    assert "the name holds characters that cannot be printed" in str(error)


def test_long_names_are_cut(tmp_path: Path) -> None:
    assert len(str(refusal(tmp_path, pack(f'{{"{"x" * 10**6}":null}}')))) < 400


def test_every_order_of_entries_and_every_empty_tensor_is_accepted(tmp_path: Path) -> None:
    entries = [
        f'"last":{entry("BF16", [2, 2], [8, 16])}',
        f'"empty":{entry("F32", [0, 5], [8, 8])}',
        f'"first":{entry("F32", [], [0, 4])}',
        f'"second":{entry("I32", [1], [4, 8])}',
    ]
    content = pack("{" + ",".join(entries) + "}  ", bytes(16))
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    start = len(content) - 16
    assert list(Checkpoint.open(tmp_path).tensors.values()) == [
        TensorInfo("first", "F32", (), file, start, start + 4),
        TensorInfo("second", "I32", (1,), file, start + 4, start + 8),
        TensorInfo("empty", "F32", (0, 5), file, start + 8, start + 8),
        TensorInfo("last", "BF16", (2, 2), file, start + 8, start + 16),
    ]


def test_a_million_tensors_over_the_same_bytes_are_refused_at_once(tmp_path: Path) -> None:
    body = entry(shape=[4096], offsets=[0, 4096])
    header = ",".join([f'"t{i}":{body}' for i in range(1_000_000)])
    error = refusal(tmp_path, pack("{" + header + "}", bytes(4096)))
    assert "is outside 2 to 4,000,000" in str(error)


@pytest.mark.parametrize("value", ["[1]", '{"":0}', "1.1"])
def test_the_largest_header_allowed_is_decided_in_time(tmp_path: Path, value: str) -> None:
    count = (4_000_000 - 10) // (len(value) + 1)
    error = refusal(tmp_path, pack('{"a":[' + ",".join([value] * count) + "]}"))
    assert "tensor 'a'" in str(error)
