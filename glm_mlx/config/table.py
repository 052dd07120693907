"""Typed reading of a JSON object, with refusals that name file and key.

Knows no key of any config: the readers beside it bring their tables of keys and ranges.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from glm_mlx.errors import ConfigError, OptionError


@dataclass(frozen=True)
class Range:
    """The numbers a key may hold, ends included."""

    kind: type[int] | type[float]
    low: float
    high: float

    def admits(self, value: object) -> bool:
        """Whether `value` is a number in range; NaN is not, nor is a boolean."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.kind is float or isinstance(value, int)) and self.low <= value <= self.high

    def __str__(self) -> str:
        if self.kind is int:
            return f"an integer from {self.low:,} to {self.high:,}"
        return f"a number from {self.low:g} to {self.high:g}"


class Table:
    """A JSON object under inspection.

    Args:
        data: the object; anything else is refused.
        file: named in refusals.
        prefix: put before the key in refusals, for an object inside another.
        asked: keys whose value is the caller's, so that refusing them is an `OptionError`.
    """

    def __init__(
        self, data: object, file: object, *, prefix: str = "", asked: Collection[str] = ()
    ) -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"{prefix.rstrip('.') or 'the config'} is {shown(data)}; expected a JSON object",
                file=file,
            )
        self.data: Mapping[str, object] = data
        self.file = file
        self.prefix = prefix
        self.asked = asked

    def refuse(self, key: str, problem: str) -> NoReturn:
        """Raise the error that says what is wrong with `key`."""
        name = f"{self.prefix}{key}"
        if key in self.asked:
            raise OptionError(f"{name} {problem}", field=name)
        raise ConfigError(f"{name} {problem}", file=self.file, field=name)

    def has(self, key: str) -> bool:
        """Whether `key` has a value; null is as good as absent."""
        return self.data.get(key) is not None

    def number(self, key: str, limits: Range, default: float | None = None) -> Any:
        """The number at `key`, of the kind of `limits`; refused when absent without a default."""
        value: Any = self.data[key] if self.has(key) else default
        if value is None:
            self.refuse(key, f"is missing; expected {limits}")
        if not limits.admits(value):
            self.refuse(key, f"is {shown(value)}; expected {limits}")
        return limits.kind(value)

    def flag(self, key: str) -> bool | None:
        """The boolean at `key`, or None when absent."""
        value = self.data.get(key)
        if value is not None and not isinstance(value, bool):
            self.refuse(key, f"is {shown(value)}; expected true or false")
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """The id or list of ids at `key`, each once, in order; empty when absent."""
        value = self.data.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        limits = Range(int, 0, vocab_size - 1)
        if not ids:
            self.refuse(key, "is an empty list; expected one token id or more")
        for token_id in ids:
            if not limits.admits(token_id):
                self.refuse(key, f"holds {shown(token_id)}; a token id here is {limits}")
        return tuple(dict.fromkeys(ids))


def shown(value: object) -> str:
    """A value as JSON would name it, on one line and short, whatever it is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length():,} bits"
    return reprlib.repr(value)
