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
from glm_mlx.checkpoint.layout import index_json
from glm_mlx.config import ModelConfig, Quantization, read_config
from glm_mlx.convert.awq import learn_transforms
from glm_mlx.convert.budget import allocate
from glm_mlx.convert.card import model_card
from glm_mlx.convert.files import model_files
from glm_mlx.convert.learned import LEARNED, calibration_ids, read_transforms, write_transforms
from glm_mlx.convert.pack import Transform
from glm_mlx.convert.plan import Piece, count_parameters, matrices, plan_pieces, quantized
from glm_mlx.convert.report import REPORT, ConversionReport
from glm_mlx.convert.settings import DTYPES, OnProgress, Settings
from glm_mlx.convert.shards import Weights
from glm_mlx.convert.staging import Staging
from glm_mlx.errors import OptionError
from glm_mlx.hub import CARD
from glm_mlx.load import build

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
        weights = Weights(source.checkpoint, pieces, settings, staging)
        staging.require(weights.missing_bytes + _SMALL_FILES_BYTES)
        config_file = files.pop(CONFIG)  # without which nothing loads what else is there
        while files:  # so that a tokenizer's megabytes are not held while weights are made
            staging.write(*files.popitem())
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
        staging.write(CONFIG, config_file)
        staging.write(INDEX, index_json(weights.shards, parameters=count_parameters(pieces)))
        manifest = {"algorithm": "sha256", "files": dict(report.files)}
        staging.write(MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
        staging.write(CARD, model_card(report, folder).encode())
        staging.write(REPORT, report.to_json())
        source.checkpoint.check_unchanged()
        staging.finish()
    return report


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
    parts = (tensors, stamps, repr(source.config), settings.described(), _versions())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _versions() -> dict[str, str]:
    return {"glm-mlx": version("glm-mlx"), "mlx": version("mlx")}


def _name_of_dtype(pieces: Sequence[Piece]) -> str:
    """The dtype that most of the result's floats have, in the spelling of config.json."""
    sizes: dict[str, int] = {}
    for piece in pieces:
        sizes[piece.dtype] = sizes.get(piece.dtype, 0) + math.prod(piece.shape)
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return next(name for name, dtype in DTYPES.items() if dtype == most)
