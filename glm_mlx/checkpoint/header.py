"""One safetensors file: its header parsed and held against every rule of the format.

Knows bytes, dtypes and offsets of a single file. Reads no tensor data.
Format: the README of huggingface/safetensors; 8 bytes of little-endian header length, a JSON
object, then the tensors' bytes without gap or overlap.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeGuard

import mlx.core as mx

from glm_mlx.checkpoint.refusal import bad_tensor, quote, truncated, unreadable
from glm_mlx.errors import CheckpointError
from glm_mlx.jsonfile import parse_json

# The format allows 100 MB, which hostile JSON turns into gigabytes of objects. 4 MB are parsed
# within a second and describe some 30,000 tensors; the largest dense GLM has 613.
HEADER_LIMIT_BYTES = 4_000_000

DTYPES = {
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "U8": mx.uint8,
    "U16": mx.uint16,
    "U32": mx.uint32,
    "U64": mx.uint64,
    "I8": mx.int8,
    "I16": mx.int16,
    "I32": mx.int32,
    "I64": mx.int64,
    "BOOL": mx.bool_,
}

_LENGTH_BYTES = 8
_FIELDS = {"dtype", "shape", "data_offsets"}
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 2**31 - 1  # MLX keeps a dimension in an int32
_MAX_OFFSET = 2**63 - 1
_LFS_POINTER = b"version https://git-lfs"
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape one alone, UTF-8 cannot write it
_NEGATIVE_ZERO = re.compile(rb"[\[,]\s*-0\s*[,\]]")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as the header of its file describes it.

    Attributes:
        name: the name in the checkpoint, such as `model.norm.weight`.
        dtype: the format's spelling: BF16, F16, F32, U8 ... BOOL.
        shape: the dimensions, row-major, outermost first.
        file: the file that holds it.
        start: offset of its first byte from the beginning of the file.
        stop: offset after its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells a file from one that replaced it or was written to.

    Anyone may set the time of modification; that of the last change is the system's own.
    """

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )


def open_file(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as cause:
        raise unreadable(file, cause) from cause


def read_header(file: Path) -> tuple[Stamp, list[TensorInfo]]:
    """Return the file's stamp and its tensors in the order of their bytes, at least one.

    Raises:
        CheckpointError: the header or the file's size breaks a rule of the format, or a dtype or
            dimension is one that MLX or a GLM cannot use.
    """
    with open_file(file) as stream:
        stamp = Stamp.of(os.fstat(stream.fileno()))
        try:
            raw = _read_json_bytes(stream, file, stamp.size_bytes)
        except OSError as cause:
            raise unreadable(file, cause) from cause
    entries = parse_json(raw, file=file, error=CheckpointError)
    assert isinstance(entries, dict), "what starts with a brace and parses is an object"
    if _NEGATIVE_ZERO.search(raw):
        raise CheckpointError("header holds the number -0; download it again", file=file)
    if not _is_metadata(entries.pop("__metadata__", None)):
        raise CheckpointError(
            "__metadata__ must map strings to strings; download it again", file=file
        )
    if not entries:
        raise CheckpointError("holds no tensors; download it again", file=file)
    data_start = _LENGTH_BYTES + len(raw)
    infos = [_read_entry(file, name, entry, data_start) for name, entry in entries.items()]
    infos.sort(key=lambda info: (info.start, info.stop))
    _check_layout(file, infos, data_start, stamp.size_bytes)
    return stamp, infos


def _read_json_bytes(stream: BinaryIO, file: Path, size_bytes: int) -> bytes:
    """Return the header's JSON, not parsed, its length checked against the file."""
    beginning = stream.read(len(_LFS_POINTER))
    if beginning == _LFS_POINTER:
        raise CheckpointError(
            "is a Git LFS pointer, not weights; run `git lfs pull` in its repository", file=file
        )
    if size_bytes < _LENGTH_BYTES:
        raise truncated(file, expected_bytes=_LENGTH_BYTES, found_bytes=size_bytes)
    length = int.from_bytes(beginning[:_LENGTH_BYTES], "little")
    if not 2 <= length <= HEADER_LIMIT_BYTES:
        raise CheckpointError(
            f"header length {length:,} is outside 2 to {HEADER_LIMIT_BYTES:,}; "
            "not a safetensors file, or damaged: download it again",
            file=file,
        )
    stream.seek(_LENGTH_BYTES)
    raw = stream.read(length)
    if len(raw) < length:
        raise truncated(file, expected_bytes=_LENGTH_BYTES + length, found_bytes=size_bytes)
    if not raw.startswith(b"{"):
        raise CheckpointError(
            f"header starts with {quote(raw[:1])}, not with an opening brace; download it again",
            file=file,
        )
    return raw


def _read_entry(file: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    """Check all of one tensor that does not depend on the others."""
    if not name.isprintable():  # which lone surrogates are not, either
        raise bad_tensor(file, name, "the name holds characters that cannot be printed")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        keys = sorted(entry) if isinstance(entry, dict) else entry
        raise bad_tensor(file, name, f"has {quote(keys)}; expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise bad_tensor(
            file,
            name,
            f"dtype {quote(dtype)} is not supported; get or make a revision in BF16, F16 or F32 "
            f"(readable: {', '.join(DTYPES)})",
        )
    if not _are_integers(shape, _MAX_DIMENSION) or len(shape) > _MAX_DIMENSIONS:
        raise bad_tensor(
            file,
            name,
            f"shape {quote(shape)} must be at most {_MAX_DIMENSIONS} integers of "
            f"0 to {_MAX_DIMENSION:,}",
        )
    if not _are_integers(offsets, _MAX_OFFSET) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad_tensor(
            file, name, f"data_offsets {quote(offsets)} must be [start, stop], 0 <= start <= stop"
        )
    needed = math.prod(shape) * DTYPES[dtype].size
    if offsets[1] - offsets[0] != needed:
        raise bad_tensor(
            file,
            name,
            f"shape {quote(shape)} of {dtype} takes {needed:,} bytes, "
            f"data_offsets {quote(offsets)} hold {offsets[1] - offsets[0]:,}",
        )
    return TensorInfo(
        name, dtype, tuple(shape), file, data_start + offsets[0], data_start + offsets[1]
    )


def _is_metadata(value: object) -> bool:
    if value is None:  # which is what MLX writes when it has none
        return True
    return isinstance(value, dict) and all(map(_is_text, chain(*value.items())))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


def _are_integers(values: object, limit: int) -> TypeGuard[list[int]]:
    # `type` and not `isinstance`: true is no number here.
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= limit for v in values)


def _check_layout(file: Path, infos: list[TensorInfo], data_start: int, size_bytes: int) -> None:
    """Raise unless the tensors, sorted by offset, cover the file's data exactly once."""
    end = data_start
    for info in infos:
        if info.start < end:
            raise bad_tensor(file, info.name, f"overlaps another by {end - info.start:,} bytes")
        if info.start > end:
            raise bad_tensor(
                file, info.name, f"leaves a gap of {info.start - end:,} bytes before it"
            )
        end = info.stop
    if end > size_bytes:
        cut = next(info for info in infos if info.stop > size_bytes)
        raise truncated(file, expected_bytes=end, found_bytes=size_bytes, tensor=cut.name)
    if end < size_bytes:
        raise CheckpointError(
            f"{size_bytes - end:,} bytes follow the last tensor; {end:,} bytes expected, "
            f"{size_bytes:,} found; download it again",
            file=file,
        )
