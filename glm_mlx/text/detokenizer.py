"""Ids to text one at a time, never splitting a character; knows bytes, no vocabulary."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """Turns a stream of ids into text as soon as the text is certain.

    All pushes and the finish, joined, equal one-shot decoding of the same ids. U+FFFD stands for
    bytes that are not UTF-8, and only for those.

    Args:
        bytes_of: the bytes of an id; none for ids that have no text.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Take the next id; return the text that no later id can change, perhaps none."""
        return self._decoder.decode(self._bytes_of(id))

    def finish(self) -> str:
        """Return what is left: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)
