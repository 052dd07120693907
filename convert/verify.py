"""A converted folder held against its source: hashes, coverage, and blocks made again.

Trusts neither the report nor the run that wrote the folder: what the result should be is planned
and computed anew.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glm_mlx.checkpoint import Checkpoint, RowReader, as_bytes
from glm_mlx.checkpoint.folder import MANIFEST, read_manifest
from glm_mlx.config import read_config
from glm_mlx.convert.learned import read_transforms
from glm_mlx.convert.ours import strangers_in_result
from glm_mlx.convert.pack import Block, Transform, blocks_of, pack_block, read_block
from glm_mlx.convert.pipeline import Source, open_source, small_files
from glm_mlx.convert.plan import Piece, quantized
from glm_mlx.convert.report import REPORT, ConversionReport
from glm_mlx.convert.settings import OnProgress, Progress, Settings
from glm_mlx.convert.shards import shards_of
from glm_mlx.errors import CheckpointError, InputFileError
from glm_mlx.modelfile import read_file

_SAMPLED_BLOCK_BYTES = 1 << 20
_SMALL_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class Verification:
    """What was compared and what was found wrong.

    Attributes:
        full: whether every block was made again, rather than one of each tensor.
        tensors: how many the result holds.
        compared_bytes, total_bytes: of the source, made again and in all.
        findings: one line for each thing that is wrong; empty when nothing is.
        errors: tensor -> relative error over all its rows; only of a full verification.
    """

    full: bool
    tensors: int
    compared_bytes: int
    total_bytes: int
    findings: tuple[str, ...]
    errors: Mapping[str, float] = field(default_factory=dict)


def verify_folder(
    folder: Path, source_folder: Path, *, full: bool = False, on_progress: OnProgress | None = None
) -> Verification:
    """Compare the conversion in `folder` with what its source gives.

    Args:
        full: make every block again, and measure the error of every row, rather than one block of
            each tensor.

    Raises:
        InputFileError: one of the folders cannot be read, or `folder` has no report.
    """
    report = ConversionReport.read(folder)
    if report is None:
        raise InputFileError(f"holds no {REPORT}; only converted folders have one", file=folder)
    settings = _settings(report)
    source = open_source(source_folder, settings)
    result = Checkpoint.open(folder)
    quantization = read_config(folder, trust_config=True).quantization
    pieces = quantized(source.pieces, quantization)
    shards = shards_of(pieces, settings)
    files = small_files(source_folder, source, settings, quantization, shards)
    findings = [
        *_hashes(folder, result, on_progress),
        *_differences(folder, files),
        *_strangers(folder),
        *_misreported(report, pieces),
        *_coverage(source, pieces, result),
    ]
    compared_bytes = 0
    total_bytes = sum(piece.size_bytes for piece in pieces)
    errors: dict[str, float] = {}
    transforms = read_transforms(folder)
    with RowReader(source.checkpoint) as reader, RowReader(result) as result_reader:
        for piece in pieces:
            if not _is_there(piece, result):
                continue  # which the coverage has named
            comparison = _Comparison(piece, reader, result_reader, result, transforms)
            for block in _chosen(piece, full=full):
                comparison.compare(block)
                compared_bytes += block.size_bytes
                if on_progress is not None:
                    done = compared_bytes if full else min(compared_bytes, total_bytes)
                    on_progress(Progress("verifying", done, total_bytes, piece.name))
            findings += comparison.findings()
            if full:
                errors[piece.name] = comparison.relative_error
    source.checkpoint.check_unchanged()
    result.check_unchanged()
    return Verification(
        full, len(result.tensors), compared_bytes, total_bytes, tuple(findings), errors
    )


def _settings(report: ConversionReport) -> Settings:
    """The part of what was asked for that decides the plan."""
    recipe = report.recipe
    return Settings(
        source_name=report.source,
        layout=report.layout,
        dtype=recipe.get("dtype"),
        dequantize=bool(recipe.get("dequantize")),
        rope=recipe.get("rope"),
        max_shard_bytes=int(recipe["max_shard_bytes"]),
        trust_config=True,
    )


def _hashes(folder: Path, result: Checkpoint, on_progress: OnProgress | None) -> Iterator[str]:
    """Findings about the bytes themselves: checksums and values that are not finite."""
    manifest = read_manifest(folder)
    if manifest is None:
        yield f"{MANIFEST} is missing, so no file can be held against its sha256"
        return

    def report(done_bytes: int, total_bytes: int) -> None:
        if on_progress is not None:
            on_progress(Progress("checking", done_bytes, total_bytes))

    yield from result.check_data(on_progress=report)
    weight_files = {info.file.name for info in result.tensors.values()}
    for name in manifest.keys() - weight_files:
        data = read_file(folder, name, error=CheckpointError, max_bytes=_SMALL_FILE_BYTES)
        if data is None:
            yield f"file {name} is missing"
        elif hashlib.sha256(data).hexdigest() != manifest[name]:
            yield f"file {name}: its sha256 is not the one in {MANIFEST}"


def _differences(folder: Path, files: Mapping[str, bytes]) -> Iterator[str]:
    """Findings about config, tokenizer and index: what the source gives, byte for byte."""
    for name, expected in files.items():
        data = read_file(folder, name, error=CheckpointError, max_bytes=_SMALL_FILE_BYTES)
        if data != expected:
            yield f"file {name} is {'missing' if data is None else 'not what the source gives'}"


def _strangers(folder: Path) -> Iterator[str]:
    """Findings about files that no conversion wrote; the card is the user's to edit."""
    for name in strangers_in_result(folder) or ():
        yield f"file {name} is not of the conversion"


def _misreported(report: ConversionReport, pieces: Sequence[Piece]) -> Iterator[str]:
    """Findings about what the report says of the tensors."""
    told = {tensor.name: (tensor.shape, tensor.stored) for tensor in report.tensors}
    for piece in pieces:
        if told.pop(piece.name, None) != (piece.shape, piece.stored):
            yield f"{REPORT} does not describe tensor {piece.name} as it is"
    for name in told:
        yield f"{REPORT} describes tensor {name}, which is not there"


def _coverage(source: Source, pieces: Sequence[Piece], result: Checkpoint) -> Iterator[str]:
    """Findings about names and shapes: each source row used once, each target there once."""
    tensors = source.checkpoint.tensors
    rows = Counter({name: tensors[name].shape[0] for name in source.skipped})
    for piece in pieces:
        for segment in piece.segments:
            for info in segment.tensors:
                rows[info.name] += segment.stop - segment.start
    for name, info in tensors.items():
        if rows[name] != info.shape[0]:
            yield f"source tensor {name}: {rows[name]:,} of {info.shape[0]:,} rows are used"
    outputs = {output.name: output for piece in pieces for output in piece.outputs}
    for name, output in outputs.items():
        found = result.tensors.get(name)
        if found is None:
            yield f"tensor {name} is missing"
        elif (found.dtype, found.shape) != (output.dtype, output.shape):
            yield (
                f"tensor {name} is {found.dtype} {found.shape}, "
                f"expected {output.dtype} {output.shape}"
            )
    for name in result.tensors.keys() - outputs.keys():
        yield f"tensor {name} comes from nothing in the source"


def _is_there(piece: Piece, result: Checkpoint) -> bool:
    return all(
        output.name in result.tensors and result.tensors[output.name].shape == output.shape
        for output in piece.outputs
    )


def _chosen(piece: Piece, *, full: bool) -> Iterator[Block]:
    """Yield all blocks of a piece, or one that its name picks."""
    if full:
        yield from blocks_of(piece)
        return
    blocks = list(blocks_of(piece, block_bytes=_SAMPLED_BLOCK_BYTES))
    yield blocks[zlib.crc32(piece.name.encode()) % len(blocks)]


class _Comparison:
    """One piece made again, block by block, beside what the result holds."""

    def __init__(
        self,
        piece: Piece,
        source: RowReader,
        target: RowReader,
        result: Checkpoint,
        transforms: Mapping[str, Transform],
    ) -> None:
        self._piece = piece
        self._source = source
        self._target = target
        self._result = result
        self._transform = transforms.get(piece.name)
        self._wrong: dict[str, tuple[int, int]] = {}
        self._error = self._norm = 0.0

    @property
    def relative_error(self) -> float:
        return math.sqrt(self._error / self._norm) if self._norm else 0.0

    def compare(self, block: Block) -> None:
        floats, _ = read_block(self._source, block)
        packed = pack_block(floats, self._piece, block.first, self._transform, sample=slice(None))
        last = block.first + block.stop - block.start
        for name, part in packed.parts.items():
            stored = self._target.read(self._result.tensors[name], block.first, last)
            if bytes(as_bytes(part)) != stored.tobytes():
                self._wrong.setdefault(name, (block.first, last))
        self._error += packed.error
        self._norm += packed.norm

    def findings(self) -> Iterator[str]:
        for name, (first, last) in self._wrong.items():
            yield f"tensor {name}: rows {first:,} to {last - 1:,} are not what the source gives"
