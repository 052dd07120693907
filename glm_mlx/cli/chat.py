"""`glm-mlx chat`: a conversation on the terminal, or from a script on stdin."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from glm_mlx.cli import replies, stdin, terminal
from glm_mlx.cli.conversation import Conversation
from glm_mlx.cli.options import ModelChoice, Text, debug_option, model_options, sampling_options
from glm_mlx.errors import ContextLengthError, GLMError, OptionError

if TYPE_CHECKING:
    from glm_mlx.api import GLM

_HELP = '''\
/help          this list
/clear         forget the conversation, keep the system prompt
/system TEXT   set the system prompt; without TEXT, remove it
/save FILE     write the conversation as JSON
/load FILE     go on with a saved one
/exit          leave (Ctrl-D does too)
Ctrl-C stops a reply and keeps what was said of it.
End a line with \\ to go on with the next, or put several between """ and """.
'''


@click.command()
@model_options
@click.option("--system-prompt", type=Text(), help="Instructions ahead of the conversation.")
@click.option(
    "--max-tokens",
    "-m",
    type=click.IntRange(min=1),
    help="End each reply after this many tokens.  [default: the room that is left]",
)
@sampling_options
@click.option("--verbose", is_flag=True, help="Print token counts and speed after each reply.")
@debug_option
def chat(
    choice: ModelChoice,
    system_prompt: str | None,
    max_tokens: int | None,
    sampling: dict[str, Any],
    verbose: bool,
) -> None:
    """Talk with a model, turn by turn.

    /help lists what can be done besides talking. Lines on stdin that is not a terminal are taken
    as they come; the first error then ends the session.
    """
    with choice.load() as glm:
        if not glm.tokenizer.has_chat_template:
            raise OptionError(
                f"{choice.label} has no chat template (a base model?), so it cannot chat; "
                "complete text with: glm-mlx generate"
            )
        options = sampling | {"max_tokens": max_tokens}
        Session(glm, choice.label, Conversation(system_prompt), options, verbose=verbose).run()


class Session:
    """The loop of a chat: what is typed is a command, or something said to the model."""

    def __init__(
        self,
        glm: GLM,
        model: str,
        conversation: Conversation,
        options: dict[str, Any],
        *,
        verbose: bool,
    ) -> None:
        self._glm = glm
        self._model = model
        self._conversation = conversation
        self._options = options
        self._verbose = verbose
        self._cache = glm.new_cache()
        self._commands = {
            "/help": self._help,
            "/clear": self._clear,
            "/system": self._system,
            "/save": self._save,
            "/load": self._load,
            "/exit": self._exit,
        }

    def run(self) -> None:
        """Take entries until there are no more; a person's errors and one Ctrl-C are forgiven."""
        person = terminal.is_terminal(sys.stdin)
        if person:
            with suppress(ImportError):
                import readline  # noqa: F401  (input() then edits lines and recalls them)
            terminal.say("note", "/help lists the commands, Ctrl-D leaves")
        leaving = False
        while True:
            try:
                self._take(stdin.read_entry())
                leaving = False
            except EOFError:
                break
            except KeyboardInterrupt:
                if leaving or not person:
                    raise
                leaving = True
                terminal.end_line()
                terminal.say("note", "Ctrl-C again, or Ctrl-D, leaves")
            except GLMError as error:
                if not person:
                    raise
                leaving = False
                terminal.say("error", str(error))
        if person:
            terminal.end_line()

    def _take(self, entry: str) -> None:
        if entry.startswith("/"):
            name, _, argument = entry.partition(" ")
            if name not in self._commands:
                raise OptionError(f"no command {name}; /help lists them")
            self._commands[name](argument.strip())
        elif entry.strip():
            self._answer(entry)

    def _answer(self, question: str) -> None:
        """Print the reply and keep the turn, unless nothing was said."""
        said: list[str] = []

        def write(chunk: Any) -> None:
            said.append(chunk.text)
            terminal.emit(chunk.text)

        messages = [*self._conversation.messages, {"role": "user", "content": question}]
        try:
            last = replies.stream(self._glm, messages, write, cache=self._cache, **self._options)
        except ContextLengthError as error:
            if self._conversation.turns:
                error.hint = "or forget the conversation with /clear"
            raise
        answer = "".join(said)
        if not answer.endswith("\n"):
            terminal.emit("\n")
        if answer.strip():
            self._conversation.add(question, answer)
        else:
            terminal.say("note", "no reply, so this turn is forgotten")
        if self._verbose:
            replies.print_figures(last)

    def _help(self, argument: str) -> None:
        print(_HELP, end="", file=sys.stderr)

    def _clear(self, argument: str) -> None:
        self._begin(Conversation(self._conversation.system))

    def _system(self, argument: str) -> None:
        self._conversation.system = argument or None

    def _save(self, argument: str) -> None:
        file = _file(argument)
        self._conversation.save(file, model=self._model)
        terminal.say("note", f"saved {len(self._conversation.turns)} messages in {file}")

    def _load(self, argument: str) -> None:
        file = _file(argument)
        self._begin(Conversation.load(file))
        terminal.say("note", f"loaded {len(self._conversation.turns)} messages from {file}")

    def _exit(self, argument: str) -> None:
        raise click.exceptions.Exit(0)

    def _begin(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._cache = self._glm.new_cache()


def _file(argument: str) -> Path:
    if not argument or "\0" in argument:
        raise OptionError("give a file name, such as /save talk.json")
    return Path(os.path.expanduser(argument))
