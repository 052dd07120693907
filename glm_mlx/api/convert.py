"""Convert, verify, export and upload model folders: options checked, names resolved.

The work itself is in the room `convert`; what reaches the network is in `hub`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glm_mlx.api.checks import check_callback, check_choice, check_flags, check_size
from glm_mlx.checkpoint import Checkpoint
from glm_mlx.checkpoint.folder import MANIFEST, read_manifest
from glm_mlx.checkpoint.refusal import join, quote
from glm_mlx.config import read_config
from glm_mlx.convert.card import PLACE
from glm_mlx.convert.pipeline import convert_folder
from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.report import ConversionReport
from glm_mlx.convert.settings import DTYPES, LAYOUTS, OnProgress, Settings
from glm_mlx.convert.verify import Verification, verify_folder
from glm_mlx.errors import CheckpointError, InputFileError, OptionError
from glm_mlx.hub import CARD, is_hub_id, local_path, origin, resolve
from glm_mlx.hub import upload as send
from glm_mlx.modelfile import own_file, read_file

_CARD_LIMIT_BYTES = 4 << 20
_LEARN = ("awq",)


def convert(
    source: str | Path,
    destination: str | Path | None = None,
    *,
    quantize: str | Recipe | None = None,
    dtype: str | None = None,
    dequantize: bool = False,
    revision: str | None = None,
    rope: Mapping[str, object] | None = None,
    trust_config: bool = False,
    overwrite: bool = False,
    allow_overflow: bool = False,
    max_shard_bytes: int = 1 << 30,
    learn: str | None = None,
    calibration: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> ConversionReport:
    """Convert a checkpoint in any of the three layouts to a folder of MLX weights.

    Memory does not grow with the model. A run cut short, even by an exception from
    ``on_progress``, leaves ``DESTINATION.unfinished``; the same call continues there and gives the
    same bytes as one run would have.

    Args:
        source: a folder, or a hub id, which is fetched first.
        destination: a folder that is not there yet; None is ``./<name of the source>-<recipe>``.
        quantize: a shorthand (``4bit``, ``mxfp4``, ``mixed_4_6``, ``4.6bit``, ``5GB``) or a
            `Recipe`; None leaves the weights unquantized.
        dtype: float16, bfloat16 or float32 for what stays a float; None keeps the source's.
        dequantize: unpack a quantized source.
        revision: branch, tag or commit of a hub id.
        rope: RoPE settings laid over the config's and written to the result, as in `load`.
        trust_config: take doubtful config values at their word, without a warning.
        overwrite: replace a finished conversion, or start an unfinished one over.
        allow_overflow: cut values beyond float16 to its largest instead of refusing them.
        max_shard_bytes: size of a weight file, unless a single tensor is larger.
        learn: ``awq`` scales weights by what ``calibration``, a text file, activates.
        on_progress: called with a `Progress` after every block.

    Raises:
        OptionError: options contradict each other, the source or the destination.
        InputFileError: a file of the source is missing, damaged or of an unsupported kind.
        NumericError: the source holds NaN or infinity, or ``dtype`` cannot hold its values.
        ResourceError: the disk is too small or fails.
        HubError: the source could not be fetched.
    """
    recipe = Recipe.parse(quantize) if isinstance(quantize, str) else quantize
    if recipe is not None and not isinstance(recipe, Recipe):
        raise OptionError(
            f"quantize is {quote(quantize)}; expected a shorthand such as '4bit', or a Recipe",
            field="quantize",
        )
    _check_writing(dtype, trust_config, overwrite, allow_overflow, max_shard_bytes, on_progress)
    check_flags(dequantize=dequantize)
    check_choice("learn", learn, (None, *_LEARN))
    if (learn is None) != (calibration is None):
        raise OptionError("--learn and --calibration need each other; give both", field="learn")
    if learn is not None and recipe is None:
        raise OptionError("--learn is a way to quantize; give --quantize too", field="learn")
    if dequantize and recipe is not None:
        raise OptionError("--quantize and --dequantize exclude each other", field="dequantize")
    target = (
        default_destination(source, recipe, dtype)
        if destination is None
        else local_path(destination, field="destination")
    )
    text = None if calibration is None else local_path(calibration, field="calibration")
    folder, name, commit = _open(source, revision)
    settings = Settings(
        source_name=name,
        recipe=recipe,
        dtype=dtype,
        dequantize=dequantize,
        rope=rope,
        trust_config=trust_config,
        overwrite=overwrite,
        allow_overflow=allow_overflow,
        max_shard_bytes=max_shard_bytes,
        learn=learn,
        calibration=text,
        revision=commit,
    )
    return convert_folder(folder, target, settings, on_progress=on_progress)


def export(
    source: str | Path,
    destination: str | Path,
    *,
    layout: str = "hf",
    dtype: str | None = None,
    revision: str | None = None,
    rope: Mapping[str, object] | None = None,
    trust_config: bool = False,
    overwrite: bool = False,
    allow_overflow: bool = False,
    max_shard_bytes: int = 1 << 30,
    on_progress: OnProgress | None = None,
) -> ConversionReport:
    """Write a model, converted or not, as other programs read it; quantized weights are unpacked.

    Args:
        layout: ``hf`` is what transformers loads as ``glm`` or ``glm4``, ``chatglm`` the layout of
            the 2024 repositories.

    Other arguments, interruptions and errors are those of `convert`.
    """
    check_choice("layout", layout, LAYOUTS[1:])
    _check_writing(dtype, trust_config, overwrite, allow_overflow, max_shard_bytes, on_progress)
    target = local_path(destination, field="destination")
    folder, name, commit = _open(source, revision)
    config = read_config(folder, rope=rope, trust_config=trust_config)
    settings = Settings(
        source_name=name,
        layout=layout,
        dtype=dtype,
        dequantize=config.quantization is not None,
        rope=rope,
        trust_config=trust_config,
        overwrite=overwrite,
        allow_overflow=allow_overflow,
        max_shard_bytes=max_shard_bytes,
        revision=commit,
    )
    return convert_folder(folder, target, settings, on_progress=on_progress)


def verify(
    folder: str | Path,
    source: str | Path | None = None,
    *,
    revision: str | None = None,
    full: bool = False,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Hold a converted folder against its source: hashes, coverage, and blocks made again.

    Args:
        source: what it was converted from; None is the hub id and commit that its report names.
        revision: branch, tag or commit of a hub id.
        full: make every block again rather than one of each tensor.

    Returns:
        What was compared; its ``findings`` are empty when everything is as the source gives it.

    Raises:
        InputFileError: a folder cannot be read or the first one has no report.
        OptionError: the report names no hub id, so the source must be given.
    """
    check_flags(full=full)
    check_callback("on_progress", on_progress)
    folder = resolve(local_path(folder, field="folder"))
    if source is None:
        report = _report(folder)
        if not is_hub_id(report.source):
            raise OptionError(
                f"{folder} was converted from a folder called {report.source!r}; "
                "say where it is with --source",
                field="source",
            )
        source, revision = report.source, revision or report.revision
    return verify_folder(
        folder, resolve(source, revision=revision), full=full, on_progress=on_progress
    )


@dataclass(frozen=True)
class UploadPlan:
    """What goes to the Hub, or would.

    Attributes:
        repo: ``owner/name``.
        private: whether a repository made for it is private.
        files: name -> size in bytes, the card included.
        card: text of the README.md.
        address: of the repository, None where nothing was sent.
    """

    repo: str
    private: bool
    files: Mapping[str, int]
    card: str
    address: str | None = None


def upload(
    folder: str | Path, repo: str, *, private: bool = False, dry_run: bool = False
) -> UploadPlan:
    """Send a converted folder to the Hugging Face hub, without a question.

    The account is that of ``hf auth login`` or of HF_TOKEN. A second call goes on where the first
    was cut off.

    Args:
        repo: ``owner/name``; made if there is none.
        private: make it private; a public one that is there already is refused.
        dry_run: send nothing and do not touch the network.

    Raises:
        InputFileError: the folder is not a finished conversion.
        CheckpointError: a file is not the one that was made; README.md may be edited.
        OptionError: ``repo`` is not ``owner/name``.
        HubError: the Hub cannot be reached or refuses.
    """
    check_repo(repo)
    check_flags(private=private, dry_run=dry_run)
    folder = resolve(local_path(folder, field="folder"))
    _report(folder)
    _check_hashes(folder)
    raw = read_file(folder, CARD, error=InputFileError, max_bytes=_CARD_LIMIT_BYTES)
    if raw is None:
        raise InputFileError(f"{CARD} is missing; convert it again", file=folder)
    try:
        card = raw.decode("utf-8").replace(PLACE, repo)
    except UnicodeDecodeError as cause:
        raise InputFileError(f"not UTF-8 at byte {cause.start:,}", file=folder / CARD) from cause
    sizes = {
        file.name: file.stat().st_size
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".")
    }
    sizes[CARD] = len(card.encode())
    plan = UploadPlan(repo, private, sizes, card)
    if dry_run:
        return plan
    address = send(folder, repo, files=sizes, card=card, private=private)
    return UploadPlan(repo, private, sizes, card, address)


def check_repo(repo: str) -> None:
    """Raise `OptionError` if a repository cannot be called so."""
    if not isinstance(repo, str) or not is_hub_id(repo):
        raise OptionError(f"repository {quote(repo)} is not owner/name", field="repo")


def default_destination(source: str | Path, recipe: Recipe | None, dtype: str | None) -> Path:
    """Return where a conversion goes that was given no destination."""
    path = Path(os.path.abspath(local_path(source, field="source")))
    found = origin(path)
    name = path.name if found is None else found[0].rpartition("/")[2]
    return Path(f"{name}-{dtype or 'mlx' if recipe is None else recipe.label}")


def _open(source: str | Path, revision: str | None) -> tuple[Path, str, str | None]:
    """Return the folder of a source, what to call it, and its commit, if it is from the Hub."""
    folder = resolve(source, revision=revision)
    if (found := origin(folder)) is not None:
        return folder, *found
    return folder, folder.resolve().name, None


def _report(folder: Path) -> ConversionReport:
    report = ConversionReport.read(folder)
    if report is None:
        raise InputFileError("holds no conversion.json: not a finished conversion", file=folder)
    return report


def _check_hashes(folder: Path) -> None:
    """Raise `CheckpointError` unless every file of a result is the one that was written."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise CheckpointError(f"{MANIFEST} is missing; convert it again", file=folder)
    if missing := [name for name in manifest if not os.path.lexists(folder / name)]:
        raise CheckpointError(f"{join(missing)} is missing; convert it again", file=folder)
    checkpoint = Checkpoint.open(folder)
    if findings := checkpoint.check_data():
        raise CheckpointError(f"{findings[0]}; convert it again", file=folder)
    weights = {info.file.name for info in checkpoint.tensors.values()}
    for name in manifest.keys() - weights - {CARD}:
        with own_file(folder, name, error=CheckpointError).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != manifest[name]:
            raise CheckpointError(
                f"its sha256 is not the one in {MANIFEST}; convert it again", file=folder / name
            )


def _check_writing(
    dtype: object,
    trust_config: object,
    overwrite: object,
    allow_overflow: object,
    max_shard_bytes: object,
    on_progress: object,
) -> None:
    """Check what `convert` and `export` have in common."""
    check_choice("dtype", dtype, (None, *DTYPES))
    check_flags(trust_config=trust_config, overwrite=overwrite, allow_overflow=allow_overflow)
    check_size("max_shard_bytes", max_shard_bytes)
    check_callback("on_progress", on_progress)
