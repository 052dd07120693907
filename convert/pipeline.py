"""A checkpoint in one layout to a model folder in another, streamed, resumable, reported.

Puts the parts in order: plan, staging folder, blocks, small files. What a block becomes is decided
in `pack`, what the disk goes through in `staging`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from glm_mlx.checkpoint import Checkpoint, RowReader, as_bytes
from glm_mlx.checkpoint.folder import INDEX, MANIFEST
from glm_mlx.checkpoint.layout import ShardPlan, index_json, plan_shards
from glm_mlx.checkpoint.refusal import join
from glm_mlx.checkpoint.writer import ShardWriter
from glm_mlx.config import ModelConfig, Quantization, read_config
from glm_mlx.convert.card import model_card
from glm_mlx.convert.files import model_files
from glm_mlx.convert.learned import LEARNED, calibration_ids, read_transforms, write_transforms
from glm_mlx.convert.pack import Transform, blocks_of, pack_block, read_block
from glm_mlx.convert.plan import Piece, count_parameters, matrices, plan_pieces, quantized
from glm_mlx.convert.report import REPORT, ConversionReport, TensorReport, tensor_report
from glm_mlx.convert.settings import DTYPES, OnProgress, Progress, Settings
from glm_mlx.convert.staging import Staging
from glm_mlx.errors import NumericError, OptionError
from glm_mlx.hub import CARD
from glm_mlx.load import build

_MEASURED_ROWS = 16  # of each block; `verify --full` measures all of them
CONFIG = "config.json"
_SMALL_FILES_BYTES = 64 << 20  # tokenizer, configuration, report: an upper bound


@dataclass(frozen=True)
class Source:
    """A checked source and the plan for it.

    Attributes:
        config: of the source, the caller's rope settings laid over it.
        pieces: not yet quantized.
    """

    checkpoint: Checkpoint
    config: ModelConfig
    pieces: Sequence[Piece]
    skipped: Sequence[str]


def open_source(folder: Path, settings: Settings) -> Source:
    """Check a source against its config, from headers alone, and plan what becomes of it.

    Raises:
        ConfigError, CheckpointError: the source cannot be used.
        OptionError: the settings do not fit it.
    """
    config = read_config(folder, rope=settings.rope, trust_config=settings.trust_config)
    checkpoint = Checkpoint.open(folder)
    config = build(config, checkpoint).config
    packed = config.quantization is not None
    if packed and not settings.dequantize:
        raise OptionError(
            f"{folder} is quantized already; convert the unquantized checkpoint, "
            "or unpack this one with dequantize",
            field="dequantize",
        )
    if settings.dequantize and (not packed or settings.recipe is not None):
        found = "is given with quantize" if packed else f"is given, but {folder} is not quantized"
        raise OptionError(f"dequantize {found}; leave one of them out", field="dequantize")
    dtype = None if settings.dtype is None else DTYPES[settings.dtype]
    pieces, skipped = plan_pieces(checkpoint, config, layout=settings.layout, dtype=dtype)
    return Source(checkpoint, config, pieces, skipped)


def convert_folder(
    folder: Path, destination: Path, settings: Settings, *, on_progress: OnProgress | None = None
) -> ConversionReport:
    """Convert the model in `folder` to a new folder `destination`.

    An unfinished conversion with the same source and settings is continued; the result is the
    same, bit for bit, as that of one run.

    Raises:
        InputFileError: the source cannot be used; its file is named.
        OptionError: the settings contradict each other, the source or the destination.
        NumericError: the source holds NaN or infinity, or `dtype` cannot hold its values.
        ResourceError: the disk is too small or fails.
    """

    source = open_source(folder, settings)
    with (
        Staging(
            destination,
            source=folder,
            fingerprint=_fingerprint(source, settings),
            overwrite=settings.overwrite,
        ) as staging,
        RowReader(source.checkpoint) as reader,
    ):
        quantization = _choose(source, reader, settings, on_progress)
        files = model_files(
            folder,
            source.config,
            layout=settings.layout,
            quantization=quantization,
            dtype=_name_of_dtype(source.pieces),
        )
        pieces = quantized(source.pieces, quantization)
        run = _Run(source, pieces, settings, staging, reader)
        staging.require(run.missing_bytes + _SMALL_FILES_BYTES)
        config_file = files.pop(CONFIG)  # without which nothing loads what else is there
        while files:  # so that a tokenizer's megabytes are not held while weights are made
            staging.write(*files.popitem())
        run.write_weights(
            _learn(folder, source, quantization, settings, staging, on_progress), on_progress
        )
        report = run.report()
        staging.write(CONFIG, config_file)
        staging.write(INDEX, index_json(run.shards, parameters=count_parameters(run.pieces)))
        manifest = {"algorithm": "sha256", "files": dict(report.files)}
        staging.write(MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
        staging.write(CARD, model_card(report, folder).encode())
        staging.write(REPORT, report.to_json())
        source.checkpoint.check_unchanged()
        staging.finish()
    return report


class _Run:
    """The shards of one conversion, made one after the other."""

    def __init__(
        self,
        source: Source,
        pieces: Sequence[Piece],
        settings: Settings,
        staging: Staging,
        reader: RowReader,
    ) -> None:
        self.source = source
        self.pieces = pieces
        self.settings = settings
        self.staging = staging
        self._reader = reader
        self._transforms: Mapping[str, Transform] = {}
        self.shards = plan_shards(
            [piece.outputs for piece in pieces],
            max_bytes=settings.max_shard_bytes,
            file_format="mlx" if settings.layout == "mlx" else "pt",
        )

    @property
    def missing_bytes(self) -> int:
        """What the shards that are not there yet will take."""
        done = self.staging.done
        return sum(s.size_bytes for s in self.shards if s.file_name not in done)

    def write_weights(
        self, transforms: Mapping[str, Transform], on_progress: OnProgress | None
    ) -> None:
        """Make and record every shard that an earlier run did not."""
        self._transforms = transforms
        total_bytes = sum(piece.size_bytes for piece in self.pieces)
        done_bytes = 0
        for shard in self.shards:
            pieces = self._pieces_of(shard)
            if shard.file_name in self.staging.done:
                done_bytes += sum(piece.size_bytes for piece in pieces)
                continue
            reports = []
            with ShardWriter(self.staging.folder, shard) as writer:
                for piece in pieces:
                    for step in self._write_piece(piece, writer):
                        if isinstance(step, TensorReport):
                            reports.append(step)
                            continue
                        done_bytes += step
                        if on_progress is not None:
                            on_progress(Progress("converting", done_bytes, total_bytes, piece.name))
                self.source.checkpoint.check_unchanged()
                digest = writer.finish()
            entry = {"sha256": digest, "tensors": [asdict(report) for report in reports]}
            self.staging.record(shard.file_name, entry)

    def _pieces_of(self, shard: ShardPlan) -> list[Piece]:
        return [piece for piece in self.pieces if piece.outputs[0].name in shard.spans]

    def _write_piece(self, piece: Piece, writer: ShardWriter) -> Iterator[int | TensorReport]:
        """Yield the source bytes of each block written, and the piece's report at the end."""
        error = norm = 0.0
        beyond = 0
        for block in blocks_of(piece):
            floats, bad = read_block(self._reader, block)
            transform = self._transforms.get(piece.name)
            sample = slice(None, None, max(1, (block.stop - block.start) // _MEASURED_ROWS))
            packed = pack_block(floats, piece, block.first, transform, sample=sample)
            beyond += packed.beyond
            if bad or (packed.beyond and not self.settings.allow_overflow):
                raise self._refusal(piece)
            for name, part in packed.parts.items():
                writer.write(name, as_bytes(part))
            error, norm = error + packed.error, norm + packed.norm
            yield block.size_bytes
        relative = math.sqrt(error / norm) if norm else 0.0
        size_bytes = sum(output.size_bytes for output in piece.outputs)
        yield TensorReport(
            piece.name, piece.shape, _stored(piece), size_bytes, round(relative, 8), beyond
        )

    def _refusal(self, first: Piece) -> NumericError:
        """Read on from the first bad tensor to the end, so that one error names them all."""
        bad: dict[str, int] = {}
        beyond: dict[str, int] = {}
        for piece in self.pieces[self.pieces.index(first) :]:
            for block in blocks_of(piece):
                floats, count = read_block(self._reader, block)
                name = block.segment.weight.name
                bad[name] = bad.get(name, 0) + count
                transform = self._transforms.get(piece.name)
                packed = pack_block(floats, piece, block.first, transform, sample=slice(1))
                beyond[piece.name] = beyond.get(piece.name, 0) + packed.beyond
        named = [f"{name} ({count:,})" for name, count in bad.items() if count]
        if named:
            return NumericError(
                f"tensors with NaN or infinite values: {join(named)}; download them again",
                file=self.source.checkpoint.folder,
                field=named[0].partition(" ")[0],
            )
        named = [f"{name} ({count:,})" for name, count in beyond.items() if count]
        return NumericError(
            f"tensors with values beyond {self.settings.dtype}: {join(named)}; use bfloat16, "
            "or allow_overflow to cut them to its largest",
            file=self.source.checkpoint.folder,
            field="dtype",
        )

    def report(self) -> ConversionReport:
        """Put together what was recorded of every shard, by this run and earlier ones."""
        entries = {shard.file_name: self.staging.done[shard.file_name] for shard in self.shards}
        tensors = [tensor_report(t) for entry in entries.values() for t in entry["tensors"]]
        return ConversionReport(
            source=self.settings.source_name,
            revision=self.settings.revision,
            layout=self.settings.layout,
            recipe=_recipe(self.settings),
            versions=_versions(),
            tensors=tuple(tensors),
            skipped=tuple(self.source.skipped),
            files={name: str(entry["sha256"]) for name, entry in entries.items()},
        )


def _choose(
    source: Source, reader: RowReader, settings: Settings, on_progress: OnProgress | None
) -> Quantization | None:
    """Return the spec of every matrix, measuring the source where the recipe sets a size."""
    recipe = settings.recipe
    if recipe is None:
        return None
    if recipe.target_bits is None and recipe.target_bytes is None:
        return recipe.quantization(matrices(source.pieces))
    from glm_mlx.convert.budget import allocate

    return allocate(recipe, source.pieces, reader, source.config, on_progress)


def _learn(
    folder: Path,
    source: Source,
    quantization: Quantization | None,
    settings: Settings,
    staging: Staging,
    on_progress: OnProgress | None,
) -> Mapping[str, Transform]:
    """Return what the calibration text teaches, from this run or an earlier one."""
    if settings.learn is None:
        return {}
    if settings.calibration is None or quantization is None:
        missing = "a calibration text" if settings.calibration is None else "a way to quantize"
        raise OptionError(f"learn is {settings.learn}, which needs {missing}", field="learn")
    from glm_mlx.convert.awq import learn_transforms

    if LEARNED not in staging.done:
        ids = calibration_ids(folder, source.config, settings.calibration)
        transforms = learn_transforms(
            source.checkpoint, source.config, quantization, ids, on_progress=on_progress
        )
        staging.record(LEARNED, {"sha256": write_transforms(staging.folder, transforms)})
    return read_transforms(staging.folder)


def _fingerprint(source: Source, settings: Settings) -> str:
    """What must be equal for an unfinished conversion to be continued."""
    tensors = [
        (info.name, info.dtype, info.shape, info.file.name, info.start)
        for info in source.checkpoint.tensors.values()
    ]
    files = {info.file for info in source.checkpoint.tensors.values()}
    stamps = sorted((file.name, *_size_and_time(file)) for file in files)
    parts = (tensors, stamps, repr(source.config), _recipe(settings), _versions())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _recipe(settings: Settings) -> dict[str, Any]:
    """The options that decide the bits of the result, as JSON, those left alone omitted."""
    recipe = {} if settings.recipe is None else asdict(settings.recipe)
    calibration = settings.calibration and hashlib.sha256(settings.calibration.read_bytes())
    options = {
        "layout": settings.layout,
        "dtype": settings.dtype,
        "dequantize": settings.dequantize or None,
        "rope": settings.rope and dict(settings.rope),
        "allow_overflow": settings.allow_overflow or None,
        "max_shard_bytes": settings.max_shard_bytes,
        "learn": settings.learn,
        "calibration": calibration and calibration.hexdigest(),
    }
    return {key: value for key, value in (recipe | options).items() if value not in (None, {})}


def _versions() -> dict[str, str]:
    return {"glm-mlx": version("glm-mlx"), "mlx": version("mlx")}


def _stored(piece: Piece) -> str:
    if piece.spec is None:
        return piece.dtype.lower()
    return f"{piece.spec.mode} {piece.spec.bits}/{piece.spec.group_size}"


def _name_of_dtype(pieces: Sequence[Piece]) -> str:
    """The dtype that most of the result's floats have, in the spelling of config.json."""
    sizes: dict[str, int] = {}
    for piece in pieces:
        sizes[piece.dtype] = sizes.get(piece.dtype, 0) + math.prod(piece.shape)
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return next(name for name, dtype in DTYPES.items() if dtype == most)
