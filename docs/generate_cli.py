"""Write docs/cli.md from the commands themselves; the tests compare the two.

Knows click's command tree and markdown, nothing of what a command does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from glm_mlx.cli import main

PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """\
# Command line

Written by `make docs` from the commands; do not edit. Only generated text goes to stdout,
everything else to stderr. Exit codes are in [errors.md](errors.md). Every option can also be given
as an environment variable: `GLM_MLX_<COMMAND>_<OPTION>`, for example `GLM_MLX_GENERATE_MAX_TOKENS`.
"""


def commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """Yield the context of a command and of everything below it, in the order help lists them."""
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from commands(below, click.Context(below, parent=context, info_name=name))


def section(context: click.Context) -> str:
    """Return the markdown of one command: usage, what it does, its arguments and options."""
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", f"```\n{usage}\n```"]
    if command.help:
        parts.append(inspect.cleandoc(command.help))
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [f"| {cell(f'`{names}`')} | {cell(text)} |" for names, text in filter(None, records)]
    if rows:
        parts.append("\n".join(["| option | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page() -> str:
    """Return the whole of docs/cli.md."""
    root = click.Context(main, info_name="glm-mlx", **main.context_settings)
    return "\n".join([INTRODUCTION, *(f"{section(context)}\n" for context in commands(main, root))])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
