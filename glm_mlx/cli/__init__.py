"""The `glm-mlx` command: which commands there are, and how any of them ends.

Knows click and exit codes. What a command does is in its own module, imported when it is called.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from glm_mlx.cli import terminal
from glm_mlx.cli.options import debug_option
from glm_mlx.errors import GLMError, ResourceError

__all__ = ["main"]

_COMMANDS = {
    "generate": "Complete a prompt and print the text.",
    "chat": "Talk with a model, turn by turn.",
    "info": "Describe a model folder and check it.",
    "convert": "Convert a checkpoint to MLX weights, quantized or not.",
    "verify": "Hold a converted folder against its source.",
    "export": "Write a model as other programs read it.",
    "upload": "Send a converted folder to the Hugging Face hub.",
    "doctor": "Check that this machine can run models.",
}
_NAME = "glm-mlx"
_INTERNAL, _USAGE, _OUTPUT_CLOSED = 1, 2, 141


class Program(click.Group):
    """The group of all commands, each named after its module here and imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command line and exit; see `click.Group.main` for the parameters."""
        if not standalone_mode or "_GLM_MLX_COMPLETE" in os.environ:
            prog_name = prog_name or _NAME
            return super().main(args, prog_name, complete_var, standalone_mode, **extra)
        with terminal.prepared():
            code = self._run(sys.argv[1:] if args is None else list(args))
        sys.exit(code)

    def _run(self, args: list[str]) -> int:
        """Run one command line and return its exit code, its error printed as one line."""
        state = {"debug": False}
        try:
            with self.make_context(_NAME, args or ["--help"], obj=state) as context:
                self.invoke(context)
            terminal.flush()
        except click.exceptions.Exit as stop:
            return stop.exit_code
        except (KeyboardInterrupt, click.Abort):
            return terminal.INTERRUPTED
        except BrokenPipeError:  # whoever read our output has seen enough
            terminal.discard(terminal.STDOUT, terminal.STDERR)
            return _OUTPUT_CLOSED
        except Exception as error:
            return _report(error, debug=state["debug"])
        return 0


def _report(error: Exception, *, debug: bool) -> int:
    """Print an error as one line and return its exit code."""
    if debug:
        traceback.print_exception(error)
    match error:
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else _NAME
            terminal.say("error", f"{error.format_message().rstrip('.')} (see {command} --help)")
            return _USAGE
        case GLMError():
            terminal.say("error", str(error))
            return error.exit_code
        case MemoryError():
            terminal.say("error", "out of memory")
            return ResourceError.exit_code
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            terminal.discard(terminal.STDOUT)
            terminal.say("error", f"{error.filename or 'stdout'}: {error.strerror}")
            return ResourceError.exit_code
    advice = "" if debug else "; run again with --debug for the traceback"
    terminal.say("error", f"internal error: {type(error).__name__}: {error}{advice}")
    return _INTERNAL


@click.group(
    cls=Program,
    context_settings={"auto_envvar_prefix": "GLM_MLX", "help_option_names": ["-h", "--help"]},
)
@click.version_option(
    package_name="glm-mlx",
    message="%(prog)s %(version)s",
    allow_from_autoenv=False,  # GLM_MLX_VERSION is a name that deployments give their own meaning
)
@debug_option
def main() -> None:
    """Run GLM-4 language models through MLX."""
