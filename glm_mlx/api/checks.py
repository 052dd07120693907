"""What a caller passes, refused by name before any work if it is of a wrong type.

Knows types only; what values mean together is for the functions that take them.
"""

from __future__ import annotations

from collections.abc import Collection

from glm_mlx.checkpoint.refusal import quote
from glm_mlx.errors import OptionError


def check_choice(name: str, value: object, choices: Collection[str | None]) -> None:
    """Raise `OptionError` unless the value is one of the choices."""
    if (value is not None and not isinstance(value, str)) or value not in choices:
        _refuse(name, value, " or ".join(filter(None, choices)))


def check_flags(**flags: object) -> None:
    """Raise `OptionError` unless each is True or False: the text "no" would count as yes."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            _refuse(name, value, "True or False")


def check_size(name: str, value: object) -> None:
    """Raise `OptionError` unless the value is a whole number of bytes above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _refuse(name, value, "a whole number of bytes above 0")


def check_callback(name: str, value: object) -> None:
    """Raise `OptionError` unless the value can be called or is None."""
    if value is not None and not callable(value):
        _refuse(name, value, "a function or None")


def _refuse(name: str, value: object, expected: str) -> None:
    raise OptionError(f"{name} is {quote(value)}; expected {expected}", field=name)
