"""Keeps special tokens that a template writes apart from text that only looks like them.

Where a template's source spells a special token, the token's first character is replaced by a
lone surrogate. No valid text holds one, so nothing that is typed, cut, joined or rewritten on
its way through a template can pass for it. A template that writes `<|` itself and typed text
right after it asks for what it gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

BORDER = "\udfff"
"""Renders as nothing; the texts on both sides of it are tokenized apart."""


class Marks:
    """The marks of one vocabulary's special tokens.

    Args:
        specials: the texts of the tokens that no typed text may become.
    """

    def __init__(self, specials: Iterable[str]) -> None:
        specials = sorted(specials, key=len, reverse=True)
        firsts = sorted({text[0] for text in specials})
        self._mark_of = {first: chr(0xDC00 + i) for i, first in enumerate(firsts)}
        self._unmarked = str.maketrans({m: c for c, m in self._mark_of.items()} | {BORDER: None})
        # Two characters, not all: templates build tokens, as in `<|{{ message.role }}|>`.
        self._openings = any_of(text[:2] for text in specials)
        self._marked = any_of([BORDER, *(self._mark_of[s[0]] + s[1:] for s in specials)])

    def mark(self, source: str) -> str:
        """Mark the special tokens, whole or begun, in text that a template's author wrote."""
        return self._openings.sub(lambda match: self._mark_of[match[0][0]] + match[0][1:], source)

    def unmark(self, text: str) -> str:
        """Return the text a reader sees: marked tokens spelled out, borders gone."""
        return text.translate(self._unmarked)

    def split(self, text: str) -> list[str]:
        """Cut rendered text into plain pieces (even places) and special tokens (odd places).

        A border stands at an odd place as an empty string.
        """
        return [self.unmark(piece) for piece in self._marked.split(text)]


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern whose `split` keeps the texts, at odd places; earlier ones match first."""
    return re.compile("(" + ("|".join(map(re.escape, texts)) or "(?!)") + ")")
