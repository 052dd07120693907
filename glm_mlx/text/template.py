"""Messages and tools -> the prompt text that a model was trained on.

Finds the chat format of a model folder, its own Jinja template or the built-in one, and fits
the messages to what it expects. The text it returns is marked (marks.py): what the template
wrote can be told from what was typed. Knows no ids.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from glm_mlx.errors import OptionError, TemplateError
from glm_mlx.modelfile import find_file
from glm_mlx.text.marks import BORDER, Marks
from glm_mlx.text.messages import Message, Tool, check_messages, check_tools, in_glm_roles, plain
from glm_mlx.text.program import SOURCE_CHARACTERS, Program


@dataclass(frozen=True)
class Source:
    """The text of a template and the file it stands in."""

    text: str
    file: object


def find_sources(
    folder: Path, settings: Mapping[str, object], *, family: str, specials: Collection[str]
) -> dict[str, Source]:
    """Return the chat templates of a model folder by name; none if it is for completion only.

    A folder's own template wins: `chat_template.jinja`, then `chat_template` in
    tokenizer_config.json (`settings`), one text or a list of named ones. Without one, `chatglm`
    folders get the format their Python code builds, and vocabularies with GLM's roles but
    without its prefix get glm-edge's. Others without a template are base models.

    Raises:
        TemplateError: a template is not UTF-8, not a text, or not a file of the folder's own.
    """
    if file := find_file(folder, "chat_template.jinja", error=TemplateError):
        try:
            with file.open(encoding="utf-8-sig") as stream:
                return {"default": Source(stream.read(SOURCE_CHARACTERS + 1), file)}
        except UnicodeDecodeError as error:
            raise TemplateError(f"is not UTF-8: {error.reason}", file=file) from error
        except OSError as error:
            raise TemplateError(f"cannot be read: {error.strerror}", file=file) from error
    file = folder / "tokenizer_config.json"
    match settings.get("chat_template"):
        case str(text):
            return {"default": Source(text, file)}
        case list(named):
            return dict(_named(entry, file) for entry in named)
        case None:
            built_in = _built_in(family, specials)
            return {"default": built_in} if built_in else {}
    raise TemplateError("chat_template is neither a text nor a list of named texts", file=file)


def _named(entry: object, file: Path) -> tuple[str, Source]:
    match entry:
        case {"name": str(name), "template": str(text)}:
            return name, Source(text, file)
    raise TemplateError('chat_template lists an entry without "name" and "template"', file=file)


def _built_in(family: str, specials: Collection[str]) -> Source | None:
    if family == "chatglm":
        name = "chatglm.jinja"
    elif "<|assistant|>" in specials and "[gMASK]" not in specials:
        name = "glm_edge.jinja"
    else:
        return None
    file = resources.files("glm_mlx.text") / "templates" / name
    return Source(file.read_text(encoding="utf-8"), f"built-in {name}")


class ChatTemplate:
    """The chat format of one model.

    Args:
        sources: templates by name; "tool_use" serves requests with tools, "default" the others.
        marks: of the vocabulary's special tokens.
        variables: what every rendering sees, such as `eos_token`.
    """

    def __init__(
        self, sources: Mapping[str, Source], marks: Marks, variables: Mapping[str, str]
    ) -> None:
        self._sources = sources
        self._marks = marks
        self._variables = {name: marks.mark(text) for name, text in variables.items()}
        self._programs: dict[str, Program] = {}

    def render(
        self,
        messages: object,
        *,
        tools: object = None,
        add_generation_prompt: bool = True,
        options: Mapping[str, object] | None = None,
    ) -> str:
        """Return the marked prompt.

        Raises:
            OptionError: a message, a tool or an option is malformed.
            TemplateError: the template fails, refuses the messages, or cannot take tools.
        """
        turns, given = _take_tools(check_messages(messages), check_tools(tools))
        name = "tool_use" if given and "tool_use" in self._sources else "default"
        program = self._program(name)
        if "tool_calls" not in program.keys:
            turns = in_glm_roles(turns)
        if given and "tools" in program.keys:
            turns = _put_tools(turns, given)
        elif given and "tools" not in program.variables:
            raise TemplateError("takes no tools; leave them out", file=self._sources[name].file)
        inputs = {
            **self._variables,
            **plain(options or {}, "template_options"),
            "messages": turns,
            "tools": given or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "border": BORDER,
        }
        text = program.run(inputs)
        try:
            self._marks.unmark(text).encode()
        except UnicodeEncodeError:
            file = self._sources[name].file
            raise TemplateError("writes a lone surrogate, which is no text", file=file) from None
        return text

    def _program(self, name: str) -> Program:
        if name not in self._sources:
            found = ", ".join(sorted(self._sources))
            file = next(iter(self._sources.values())).file
            raise TemplateError(f'has no template named "default", only {found}', file=file)
        if name not in self._programs:
            source = self._sources[name]
            self._programs[name] = Program(source.text, file=source.file, mark=self._marks.mark)
        return self._programs[name]


def _take_tools(messages: list[Message], tools: list[Tool]) -> tuple[list[Message], list[Tool]]:
    """Collect the tools of the request and of single messages in one place."""
    inside = [tool for message in messages for tool in message.pop("tools", [])]
    if tools and inside:
        raise OptionError("tools are given twice: as an option and in a message", field="tools")
    return messages, tools or inside


def _put_tools(messages: list[Message], tools: list[Tool]) -> list[Message]:
    """Give the tools to the first message, as the 2024 formats read them."""
    first: dict[str, Any] = {"role": "system", "content": ""}
    if messages[0]["role"] == "system":
        first, *messages = messages
    return [{**first, "tools": tools}, *messages]
