"""`glm-mlx export`: a model, converted or not, in the layouts other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from glm_mlx.api.convert import export as export_model
from glm_mlx.cli.convert import tell, writing_options
from glm_mlx.cli.options import config_options, debug_option
from glm_mlx.cli.stages import stages
from glm_mlx.convert.settings import DTYPES, LAYOUTS


@click.command()
@click.argument("source")
@click.argument("dest", type=Path)
@click.option(
    "--layout",
    type=click.Choice([name for name in LAYOUTS if name != "mlx"]),
    default="hf",
    show_default=True,
    help="hf for transformers, chatglm for the code of the 2024 repositories.",
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="Of all weights.")
@writing_options
@config_options
@debug_option
def export(source: str, dest: Path, json: bool, **options: Any) -> None:
    """Write a model as other programs read it.

    SOURCE is a folder or a Hugging Face id, DEST a folder that is not there yet. Quantized weights
    are unpacked. Cut short, the same command goes on where it was.
    """
    with stages(as_json=json, when_cut_short="the same command goes on from here") as shown:
        report = export_model(source, dest, on_progress=shown, **options)
    tell(report, dest, json=json)
