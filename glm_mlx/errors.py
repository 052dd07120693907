"""Every error a caller may catch, as one tree, with the exit code the command line gives it.

Knows nothing of the rest of the package.
"""

from __future__ import annotations


class GLMError(Exception):
    """Base of every error this package raises on purpose.

    The message is one line a user can act on: what was found, what would be right, what to do.

    Attributes:
        file: the file or folder at fault, when there is one.
        field: the option, config key or tensor at fault, when there is one.
        hint: the next step, when the message alone does not say it.
        exit_code: the process exit code of the command line for this class.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        file: object = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.file = None if file is None else str(file)
        self.field = field
        self.hint = hint

    def __str__(self) -> str:
        text = str(self.args[0])
        if self.file is not None:
            text = f"{self.file}: {text}"
        if self.hint is not None:
            text = f"{text} ({self.hint})"
        return text


class OptionError(GLMError, ValueError):
    """An argument or option is out of range, of a wrong type, or contradicts another."""

    exit_code = 2


class ContextLengthError(OptionError):
    """The prompt plus the tokens asked for do not fit the model's context."""


class InputFileError(GLMError):
    """A file given as input is missing, damaged or of an unsupported kind."""

    exit_code = 3


class ConfigError(InputFileError):
    """`config.json` or `generation_config.json` cannot be used."""


class CheckpointError(InputFileError):
    """The weights of a model folder cannot be trusted or do not fit its config."""


class TokenizerError(InputFileError):
    """The tokenizer files of a model folder cannot be used."""


class TemplateError(InputFileError):
    """A chat template is malformed, unsafe, too large, too slow or refused the messages."""


class ResourceError(GLMError):
    """Not enough memory or disk."""

    exit_code = 4


class HubError(GLMError):
    """A model could not be fetched or sent: network, permission or name."""

    exit_code = 5


class NumericError(GLMError):
    """Non-finite numbers where finite ones are required."""

    exit_code = 6


class ClosedError(GLMError):
    """The model was closed, or is used from a forked process that does not own it."""


class GLMWarning(UserWarning):
    """Category of every warning this package issues through the `warnings` module."""
