"""A checkpoint in one layout to a model folder in another: the order in which the work is done.

What a block of rows becomes is decided in `pack`, how files come to be in `shards` and `staging`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from glm_mlx.checkpoint import Checkpoint, RowReader
from glm_mlx.checkpoint.folder import INDEX, MANIFEST
from glm_mlx.checkpoint.layout import ShardPlan, index_json
from glm_mlx.config import ModelConfig, Quantization, read_config
from glm_mlx.convert.awq import learn_transforms
from glm_mlx.convert.budget import allocate
from glm_mlx.convert.card import model_card
from glm_mlx.convert.files import model_files
from glm_mlx.convert.learned import LEARNED, calibration_ids, read_transforms, write_transforms
from glm_mlx.convert.pack import Transform
from glm_mlx.convert.plan import Piece, count_parameters, matrices, plan_pieces, quantized
from glm_mlx.convert.report import REPORT, ConversionReport
from glm_mlx.convert.settings import DTYPES, OnProgress, Progress, Settings
from glm_mlx.convert.shards import Weights
from glm_mlx.convert.staging import Staging
from glm_mlx.errors import OptionError
from glm_mlx.hub import CARD
from glm_mlx.load import build

CONFIG = "config.json"
_REPORT_BYTES = 4 << 20  # report, card, checksums: an upper bound


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
            "or unpack this one with --dequantize",
            field="dequantize",
        )
    if settings.dequantize and (not packed or settings.recipe is not None):
        found = "is given with quantize" if packed else f"is given, but {folder} is not quantized"
        raise OptionError(f"--dequantize {found}; leave one of them out", field="dequantize")
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
        weights = Weights(
            source.checkpoint, quantized(source.pieces, quantization), settings, staging
        )
        files = small_files(folder, source, settings, quantization, weights.shards)
        hashes = {name: _sha256(data) for name, data in files.items()}
        staging.require(weights.missing_bytes + sum(map(len, files.values())) + _REPORT_BYTES)
        config_file = files.pop(CONFIG)  # without which nothing loads what else is there
        while files:  # so that a tokenizer's megabytes are not held while weights are made
            staging.write(*files.popitem())
        _check_source(source, on_progress)
        transforms = _learn(folder, source, quantization, settings, staging, on_progress)
        weights.write(reader, transforms, on_progress)
        report = ConversionReport(
            source=settings.source_name,
            revision=settings.revision,
            layout=settings.layout,
            recipe=settings.described(),
            versions=_versions(),
            tensors=weights.tensors,
            skipped=tuple(source.skipped),
            files=weights.hashes,
        )
        report_file = report.to_json()
        hashes |= {name: str(entry["sha256"]) for name, entry in staging.done.items()}
        hashes[REPORT] = _sha256(report_file)
        manifest = {"algorithm": "sha256", "files": dict(sorted(hashes.items()))}
        staging.write(MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
        staging.write(CARD, model_card(report, folder).encode())
        staging.write(CONFIG, config_file)
        staging.write(REPORT, report_file)
        source.checkpoint.check_unchanged()
        staging.finish()
    return report


def small_files(
    folder: Path,
    source: Source,
    settings: Settings,
    quantization: Quantization | None,
    shards: Sequence[ShardPlan],
) -> dict[str, bytes]:
    """Return what the result holds that follows from its source: config, tokenizer, index."""
    files = model_files(
        folder,
        source.config,
        layout=settings.layout,
        quantization=quantization,
        dtype=_name_of_dtype(source.pieces),
    )
    files[INDEX] = index_json(shards, parameters=count_parameters(source.pieces))
    return files


def _check_source(source: Source, on_progress: OnProgress | None) -> None:
    """Hold a source that says what its files should be, such as a result of ours, against it."""
    if not (source.checkpoint.folder / MANIFEST).exists():
        return

    def report(done_bytes: int, total_bytes: int) -> None:
        if on_progress is not None:
            on_progress(Progress("checking", done_bytes, total_bytes))

    source.checkpoint.check_data(on_progress=report)


def _choose(
    source: Source, reader: RowReader, settings: Settings, on_progress: OnProgress | None
) -> Quantization | None:
    """Return the spec of every matrix, measuring the source where the recipe sets a size."""
    recipe = settings.recipe
    if recipe is None:
        return None
    if recipe.target_bits is None and recipe.target_bytes is None:
        return recipe.quantization(matrices(source.pieces))
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
    if LEARNED not in staging.done:
        ids = calibration_ids(folder, source.config, settings)
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
    stamps = sorted((file.name, *_size_and_times(file)) for file in files)
    parts = (tensors, stamps, repr(source.config), settings.described(), _versions())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _size_and_times(file: Path) -> tuple[int, int, int]:
    status = file.stat()  # the last one, of any change, cannot be set back
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _versions() -> dict[str, str]:
    return {"glm-mlx": version("glm-mlx"), "mlx": version("mlx")}


def _name_of_dtype(pieces: Sequence[Piece]) -> str:
    """The dtype that most of the result's floats have, in the spelling of config.json."""
    sizes: dict[str, int] = {}
    for piece in pieces:
        sizes[piece.dtype] = sizes.get(piece.dtype, 0) + math.prod(piece.shape)
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return next(name for name, dtype in DTYPES.items() if dtype == most)
