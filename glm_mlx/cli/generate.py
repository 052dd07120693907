"""`glm-mlx generate`: one prompt in, one text out."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glm_mlx.cli import replies, stdin, terminal
from glm_mlx.cli.options import (
    ModelChoice,
    Text,
    debug_option,
    json_object,
    model_options,
    sampling_options,
)
from glm_mlx.errors import InputFileError, OptionError
from glm_mlx.jsonfile import read_json

if TYPE_CHECKING:
    from glm_mlx.api import GLM, Completion
    from glm_mlx.generate.stream import Chunk


@click.command()
@model_options
@click.option("--prompt", "-p", type=Text(), help='What to say; "-" or nothing reads stdin.')
@click.option("--system-prompt", type=Text(), help="Instructions ahead of the prompt.")
@click.option(
    "--max-tokens",
    "-m",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="End the reply after this many tokens.",
)
@sampling_options
@click.option(
    "--tools",
    type=Path,
    metavar="FILE",
    help="JSON list of function schemas; calls are printed as the model writes them.",
)
@click.option(
    "--ignore-chat-template", is_flag=True, help="Complete the prompt as raw text after the prefix."
)
@click.option(
    "--chat-template-config", type=json_object, metavar="JSON", help="Options of the chat template."
)
@click.option("--json", is_flag=True, help="Print a JSON object with ids and figures.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Print as the text comes (with --json: JSON lines), or at the end.  "
    "[default: stream, unless --json]",
)
@click.option(
    "--verbose/--quiet",
    default=None,
    help="Print token counts and speed on stderr.  [default: where stderr is a terminal]",
)
@debug_option
def generate(
    choice: ModelChoice,
    prompt: str | None,
    system_prompt: str | None,
    max_tokens: int,
    sampling: dict[str, Any],
    tools: Path | None,
    ignore_chat_template: bool,
    chat_template_config: dict[str, Any] | None,
    json: bool,
    stream: bool | None,
    verbose: bool | None,
) -> None:
    """Complete a prompt and print the text.

    The prompt is put into the model's chat template if it has one. Only generated text goes to
    stdout. Ctrl-C ends the reply and keeps what was printed.
    """
    needs_template = system_prompt or tools or chat_template_config
    if ignore_chat_template and needs_template:
        raise click.UsageError(
            "--ignore-chat-template leaves no place for --system-prompt, --tools or "
            "--chat-template-config"
        )
    said = _read_prompt(prompt, raw=ignore_chat_template)
    options = sampling | {"max_tokens": max_tokens}
    if tools is not None:
        options["tools"] = _read_tools(tools)
    if chat_template_config is not None:
        options["template_options"] = chat_template_config
    with choice.load() as glm:
        asked: str | list[dict[str, str]] = said
        if not ignore_chat_template and _takes_messages(glm, choice, needs_template):
            system = [{"role": "system", "content": system_prompt}] if system_prompt else []
            asked = [*system, {"role": "user", "content": said}]
        streaming = stream if stream is not None else not json
        reason = _answer(glm, asked, options, streaming=streaming, as_json=json, verbose=verbose)
    if reason == "cancelled":
        raise click.exceptions.Exit(terminal.INTERRUPTED)


def _read_prompt(prompt: str | None, *, raw: bool) -> str:
    if prompt is None and terminal.is_terminal(sys.stdin):
        raise click.UsageError("nothing to say: give --prompt TEXT, or pipe it in")
    said = stdin.read_all() if prompt is None or prompt == "-" else prompt
    if not (said if raw else said.strip()):
        raise OptionError("the prompt is empty", field="prompt")
    return said


def _read_tools(file: Path) -> list[Any]:
    tools = read_json(file, error=InputFileError, absent_hint=None)
    if not isinstance(tools, list):
        raise InputFileError("must hold a JSON list of function schemas", file=file)
    return tools


def _takes_messages(glm: GLM, choice: ModelChoice, needed: object) -> bool:
    """Whether the model has a chat template; loading one without has given a warning."""
    if needed and not glm.tokenizer.has_chat_template:
        raise OptionError(
            f"{choice.label} has no chat template (a base model?), "
            "which --system-prompt, --tools and --chat-template-config need"
        )
    return glm.tokenizer.has_chat_template


def _answer(
    glm: GLM,
    prompt: str | list[dict[str, str]],
    options: dict[str, Any],
    *,
    streaming: bool,
    as_json: bool,
    verbose: bool | None,
) -> str:
    """Print a reply in one of its four forms and return its finish reason."""
    ends_line = True

    def write(chunk: Chunk | Completion) -> None:
        nonlocal ends_line
        if as_json:
            terminal.emit_json(asdict(chunk))
        elif chunk.text:
            terminal.emit(chunk.text)
            ends_line = chunk.text.endswith("\n")

    last: Chunk | Completion
    if streaming:
        last = replies.stream(glm, prompt, write, **options)
    else:
        last = replies.complete(glm, prompt, **options)
        write(last)
    if not ends_line:
        terminal.emit("\n")
    if verbose or (verbose is None and terminal.is_terminal(sys.stderr)):
        replies.print_figures(last)
    return str(last.finish_reason)
