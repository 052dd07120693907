"""`glm-mlx verify`: whether a converted folder is what its source gives."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from glm_mlx.api.convert import verify as verify_model
from glm_mlx.cli import terminal
from glm_mlx.cli.options import debug_option
from glm_mlx.cli.stages import stages
from glm_mlx.errors import CheckpointError

if TYPE_CHECKING:
    from glm_mlx.api import Verification

_SHOWN = 5


@click.command()
@click.argument("dest", type=Path)
@click.option(
    "--source",
    metavar="PATH_OR_REPO",
    help="What it was converted from.  [default: the Hugging Face id in its report]",
)
@click.option("--revision", help="Branch, tag or commit of a Hugging Face model.")
@click.option("--full", is_flag=True, help="Make every block again, not one of each tensor.")
@click.option("--json", is_flag=True, help="Print JSON lines: progress, then the outcome.")
@debug_option
def verify(dest: Path, source: str | None, revision: str | None, full: bool, json: bool) -> None:
    """Hold a converted folder against its source.

    Hashes of all files, every tensor made of its own source and no other, and blocks made again
    and compared bit for bit. Exits with 3 if anything differs.
    """
    with stages(as_json=json) as shown:
        found = verify_model(dest, source, revision=revision, full=full, on_progress=shown)
    if json:
        terminal.emit_json({"event": "done", "folder": str(dest), "verification": asdict(found)})
    else:
        terminal.emit(_text(found))
    if found.findings:
        more = len(found.findings) - _SHOWN
        listed = "; ".join(found.findings[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
        raise CheckpointError(f"differs from its source: {listed}", file=dest)


def _text(found: Verification) -> str:
    """The outcome for a person."""
    lines = [
        f"{found.tensors:,} tensors, "
        f"{terminal.human_bytes(found.compared_bytes)} of "
        f"{terminal.human_bytes(found.total_bytes)} of the source made again",
        *map(terminal.printable, found.findings),
    ]
    if found.errors:
        name, error = max(found.errors.items(), key=lambda item: item[1])
        lines.append(f"largest relative error {error:.4%}, {terminal.printable(name)}")
    lines.append("wrong" if found.findings else "all is as the source gives it")
    return "\n".join(lines) + "\n"
