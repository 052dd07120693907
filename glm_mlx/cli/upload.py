"""`glm-mlx upload`: a converted folder to the Hugging Face hub, or what would go there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from glm_mlx.api.convert import upload as upload_folder
from glm_mlx.cli import terminal
from glm_mlx.cli.options import debug_option
from glm_mlx.cli.stages import stages


@click.command()
@click.argument("folder", type=Path)
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="To a private repository.")
@click.option("--dry-run", is_flag=True, help="Send nothing; print what would be sent.")
@click.option("--json", is_flag=True, help="Print a JSON object.")
@debug_option
def upload(folder: Path, repo: str, private: bool, dry_run: bool, json: bool) -> None:
    """Send a converted folder to the Hugging Face hub.

    The account is that of `hf auth login`, or of HF_TOKEN; nothing is asked. OWNER/NAME is made if
    there is none. Cut short, the same command sends the rest.
    """
    with stages(as_json=json, when_cut_short="the same command sends the rest"):
        send(folder, repo, private=private, dry_run=dry_run, json=json)


def send(folder: Path, repo: str, *, private: bool, dry_run: bool, json: bool) -> None:
    """Upload and print the address; in a dry run print files, sizes and the card."""
    plan = upload_folder(folder, repo, private=private, dry_run=dry_run)
    if json:
        terminal.emit_json({"event": "upload", **asdict(plan)})
    elif plan.address is not None:
        terminal.emit(f"{plan.address}\n")
    else:
        width = max(len(f"{size:,}") for size in plan.files.values())
        for name, size in plan.files.items():
            terminal.emit(f"{size:>{width},} bytes  {terminal.printable(name)}\n")
        terminal.emit(f"\n{plan.card}")
