"""`glm-mlx convert`: any GLM-4 checkpoint to MLX weights; command lines of mlx-lm work here too."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from glm_mlx.api.convert import check_repo, default_destination
from glm_mlx.api.convert import convert as convert_model
from glm_mlx.cli import terminal
from glm_mlx.cli.options import Command, config_options, debug_option
from glm_mlx.cli.recipe import CommandWithRecipe, recipe_options
from glm_mlx.cli.stages import stages
from glm_mlx.cli.upload import send
from glm_mlx.convert.recipes import Recipe, parse_size
from glm_mlx.convert.report import ConversionReport
from glm_mlx.convert.settings import DTYPES
from glm_mlx.errors import HubError


def writing_options(command: Command) -> Command:
    """Add the options of whatever writes weights, under the names that the API gives them."""

    @click.option(
        "--max-shard-size",
        default="1GiB",
        show_default=True,
        metavar="SIZE",
        help="Size of a weight file.",
    )
    @click.option(
        "--overwrite",
        is_flag=True,
        help="Replace a finished result of ours, or start an unfinished one over.",
    )
    @click.option(
        "--allow-overflow",
        is_flag=True,
        help="Cut what float16 cannot hold instead of refusing it.",
    )
    @click.option("--json", is_flag=True, help="Print JSON lines: progress, then the report.")
    @functools.wraps(command)
    def wrapped(*args: Any, max_shard_size: str, **others: Any) -> Any:
        return command(*args, max_shard_bytes=parse_size(max_shard_size), **others)

    return wrapped


@click.command(cls=CommandWithRecipe)
@click.argument("source", required=False)
@click.argument("dest", required=False)
@click.option("--hf-path", "--model", metavar="PATH_OR_REPO", help="SOURCE, as mlx-lm spells it.")
@click.option("--mlx-path", metavar="FOLDER", help="DEST, as mlx-lm spells it.")
@recipe_options
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Of what stays a float.")
@click.option("-d", "--dequantize", is_flag=True, help="Unpack a quantized model.")
@click.option(
    "--learn",
    type=click.Choice(["awq"]),
    help="Scale weights by what the calibration text activates.",
)
@click.option("--calibration", type=Path, metavar="FILE", help="Text that --learn runs through.")
@writing_options
@config_options
@click.option("--trust-remote-code", is_flag=True, help="Ignored: code of a model is never run.")
@click.option("--upload-repo", metavar="OWNER/NAME", help="Send the result to the Hub.")
@click.option("--private", is_flag=True, help="Upload to a private repository.")
@click.option("--dry-run", is_flag=True, help="Convert, but print what the upload would send.")
@debug_option
def convert(
    source: str | None,
    dest: str | None,
    hf_path: str | None,
    mlx_path: str | None,
    recipe: Recipe | None,
    dequantize: bool,
    trust_remote_code: bool,
    upload_repo: str | None,
    private: bool,
    dry_run: bool,
    json: bool,
    **options: Any,
) -> None:
    """Convert a checkpoint to MLX weights, quantized or not.

    SOURCE is a folder or a Hugging Face id, DEST a folder that is not there yet, by default
    ./NAME-RECIPE. Cut short, the same command goes on where it was, and the result is the same.
    """
    origin = _only("SOURCE", source, "--hf-path", hf_path)
    if origin is None:
        raise click.UsageError("nothing to convert: give SOURCE, a folder or OWNER/NAME")
    target = _only("DEST", dest, "--mlx-path", mlx_path)
    if upload_repo is None and (private or dry_run):
        raise click.UsageError("--private and --dry-run are of an upload: give --upload-repo")
    if upload_repo is not None:
        check_repo(upload_repo)
    if trust_remote_code:
        terminal.say("note", "--trust-remote-code changes nothing: code of a model is never run")
    folder = Path(target or default_destination(origin, recipe, options["dtype"]))
    with stages(as_json=json, when_cut_short="the same command goes on from here") as shown:
        report = convert_model(
            origin,
            folder,
            quantize=recipe,
            dequantize=dequantize,
            on_progress=shown,
            **options,
        )
    if not json:
        tell(report, folder, json=False)
    if upload_repo is not None:
        _upload(folder, upload_repo, private=private, dry_run=dry_run, json=json)
    if json:
        tell(report, folder, json=True)


def tell(report: ConversionReport, folder: Path, *, json: bool) -> None:
    """Print what was made: the report, unless it is to be JSON, and a line on stderr."""
    if json:
        terminal.emit_json({"event": "done", "folder": str(folder), "report": report.to_dict()})
    else:
        terminal.emit(report.table())
    size = terminal.human_bytes(report.weight_bytes)
    terminal.say("done", f"{folder}, {size}, {report.bits_per_weight:.3f} bits a weight")


def _only(name: str, value: str | None, alias: str, aliased: str | None) -> str | None:
    if value is not None and aliased is not None:
        raise click.UsageError(f"{name} and {alias} are the same thing; give one of them")
    return aliased if value is None else value


def _upload(folder: Path, repo: str, *, private: bool, dry_run: bool, json: bool) -> None:
    again = f"{folder} is finished; to send it: glm-mlx upload {folder} {repo}"
    try:
        with stages(as_json=json, when_cut_short=again):
            send(folder, repo, private=private, dry_run=dry_run, json=json)
    except HubError:
        terminal.say("note", again)
        raise
