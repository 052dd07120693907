"""A conversation as it is said, and as the file that `/save` writes and `/load` reads."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from glm_mlx.errors import InputFileError, ResourceError
from glm_mlx.jsonfile import read_json_object

Message = dict[str, str]


@dataclass
class Conversation:
    """Who said what.

    Attributes:
        system: instructions ahead of the first turn, or None.
        turns: messages of user and assistant, one after the other, complete pairs only.
    """

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """All of it, as a chat template takes it."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.turns]

    def add(self, question: str, answer: str) -> None:
        """Append a turn."""
        self.turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]

    def save(self, file: Path, *, model: str) -> None:
        """Write it as JSON, so that `file` holds the old text or the new, never half of one.

        A link stays one: what it leads to is written. A file that is there keeps its permissions.

        Raises:
            InputFileError: `file` is there and is no saved conversation, or cannot be written.
            ResourceError: the disk is full.
        """
        target = Path(os.path.realpath(file))
        if os.path.lexists(target):
            try:
                Conversation.load(target)
            except InputFileError as error:
                raise InputFileError(
                    "is not a saved conversation, so it is not overwritten; give another name",
                    file=file,
                ) from error
        text = json.dumps({"model": model, "messages": self.messages}, ensure_ascii=False, indent=2)
        try:
            _replace(target, f"{text}\n".encode())
        except OSError as error:
            kind = ResourceError if error.errno == errno.ENOSPC else InputFileError
            raise kind(f"cannot be written: {error.strerror}", file=file) from error

    @classmethod
    def load(cls, file: Path) -> Conversation:
        """Read what `save` wrote.

        Raises:
            InputFileError: the file is unreadable or something else; names the message at fault.
        """
        messages = read_json_object(file, error=InputFileError, absent_hint=None).get("messages")
        if not isinstance(messages, list):
            raise InputFileError("is not a saved conversation", file=file, field="messages")
        for number, message in enumerate(messages):
            content = message.get("content") if isinstance(message, dict) else None
            if not isinstance(content, str) or not content.strip():
                raise _bad_message(file, number, 'must have a "content" that is not empty')
        system = messages.pop(0)["content"] if _role(messages, 0) == "system" else None
        first = 0 if system is None else 1
        for number, role in zip(range(len(messages)), cycle(("user", "assistant"))):
            if _role(messages, number) != role:
                raise _bad_message(file, first + number, f'must have the "role" {role}')
        if len(messages) % 2:
            raise _bad_message(file, first + len(messages) - 1, "has no answer after it")
        turns = [{"role": each["role"], "content": each["content"]} for each in messages]
        return cls(system, turns)


def _role(messages: list[dict[str, str]], number: int) -> object:
    return messages[number].get("role") if number < len(messages) else None


def _bad_message(file: Path, number: int, found: str) -> InputFileError:
    return InputFileError(f"messages[{number}] {found}", file=file, field=f"messages[{number}]")


def _replace(file: Path, data: bytes) -> None:
    """Put `data` in the place of `file` by way of a new file next to it."""
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with new.open("xb") as stream:
        try:
            if file.exists():
                new.chmod(stat.S_IMODE(file.stat().st_mode))
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            new.replace(file)
        except BaseException:
            new.unlink()
            raise
