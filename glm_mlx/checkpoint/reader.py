"""The weights of one folder: checked when opened, read later, and the same files both times.

Which tensors a GLM should have, and of what shape, is for `load` to say.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import mlx.core as mx

from glm_mlx.checkpoint.folder import (
    INDEX,
    MANIFEST,
    choose_shards,
    compare_index,
    list_names,
    read_index,
    read_manifest,
)
from glm_mlx.checkpoint.header import Stamp, TensorInfo, open_file, read_header
from glm_mlx.checkpoint.refusal import bad_tensor, quote, unreadable
from glm_mlx.checkpoint.rows import count_non_finite
from glm_mlx.errors import CheckpointError
from glm_mlx.modelfile import own_file

_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model folder, checked but not read.

    Attributes:
        folder: the folder that was opened.
        tensors: name -> what and where it is, in the order of the shards and of their bytes.
    """

    folder: Path
    tensors: Mapping[str, TensorInfo]
    _stamps: Mapping[Path, Stamp]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Check the folder's names, index and headers; read no tensor data.

        The weights are the shards that `model.safetensors.index.json` names or, without it,
        `model.safetensors` or one whole set `model-00001-of-0000n.safetensors`.

        Raises:
            CheckpointError: naming the file, and the tensor when one is at fault.
        """
        names = list_names(folder)
        index = read_index(folder) if INDEX in names else None
        tensors: dict[str, TensorInfo] = {}
        stamps: dict[Path, Stamp] = {}
        for name in choose_shards(folder, names, index):
            file = own_file(folder, name, error=CheckpointError)
            stamps[file], infos = read_header(file)
            for info in infos:
                first = tensors.setdefault(info.name, info)
                if first is not info:
                    found = f"is in {first.file.name} too; remove the file that does not belong"
                    raise bad_tensor(file, info.name, found)
        if index is not None:
            compare_index(folder / INDEX, index, tensors)
        return cls(folder, tensors, stamps)

    def read(self) -> dict[str, mx.array]:
        """Return every tensor by name, in its stored dtype, not yet evaluated.

        MLX reads an array's bytes when it is evaluated, which only the calling thread can do.
        Call `check_unchanged` after that.

        Raises:
            CheckpointError: a shard changed since `open`.
        """
        self.check_unchanged()
        arrays: dict[str, mx.array] = {}
        for file in self._stamps:
            loaded = mx.load(str(file))
            assert isinstance(loaded, dict)
            arrays.update(loaded)
        self.check_unchanged()
        return arrays

    def check_unchanged(self) -> None:
        """Raise CheckpointError when a shard was replaced or written to since `open`."""
        for file in self._stamps:
            try:
                status = file.stat()
            except OSError as cause:
                raise unreadable(file, cause) from cause
            self.check_stamp(file, status)

    def check_stamp(self, file: Path, status: os.stat_result) -> None:
        """Raise CheckpointError unless `status` is that of the shard that was checked."""
        if Stamp.of(status) != self._stamps[file]:
            raise CheckpointError(
                "changed since it was opened; wait until it is written, then start again",
                file=file,
            )

    def check_data(self, *, on_progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Read every byte, a block at a time, and return what is wrong with the values.

        A finding names a tensor that holds NaN or infinity, and counts them. When the folder has
        `checksums.json`, `{"algorithm": "sha256", "files": {name: hex}}`, every shard must match.

        Args:
            on_progress: called with the bytes done and the bytes in all, after each block.

        Raises:
            CheckpointError: a shard does not match the manifest, or changed since `open`.
        """
        self.check_unchanged()
        checksums = read_manifest(self.folder)
        total_bytes = sum(stamp.size_bytes for stamp in self._stamps.values())
        done_bytes = 0
        findings: list[str] = []
        for file, infos in groupby(self.tensors.values(), lambda info: info.file):
            digest = hashlib.sha256()
            bad: Counter[TensorInfo] = Counter()
            for info, block in _read_blocks(file, list(infos)):
                if checksums is not None:
                    digest.update(block)
                if info is not None:
                    bad[info] += count_non_finite(block, info.dtype)
                done_bytes += len(block)
                if on_progress is not None:
                    on_progress(done_bytes, total_bytes)
            findings += (
                f"{file.name}: tensor {quote(info.name)}: {count:,} of {math.prod(info.shape):,} "
                "values are NaN or infinite"
                for info, count in bad.items()
                if count
            )
            if checksums is not None and digest.hexdigest() != checksums.get(file.name):
                raise CheckpointError(
                    f"its sha256 is not the one in {MANIFEST}; download or convert it again",
                    file=file,
                )
        self.check_unchanged()
        return findings


def _read_blocks(
    file: Path, infos: Sequence[TensorInfo]
) -> Iterator[tuple[TensorInfo | None, bytes]]:
    """Yield the whole file in order: the header as blocks of no tensor, then each tensor's."""
    spans = [(None, infos[0].start), *((info, info.size_bytes) for info in infos)]
    with open_file(file) as stream:
        for info, left_bytes in spans:
            while left_bytes:
                size_bytes = min(left_bytes, _BLOCK_BYTES)
                try:
                    block = stream.read(size_bytes)
                except OSError as cause:
                    raise unreadable(file, cause) from cause
                if len(block) < size_bytes:
                    raise CheckpointError("was cut off while being read", file=file)
                left_bytes -= size_bytes
                yield info, block
