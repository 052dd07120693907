"""Random replies to stream: bytes, emoji and Chinese cut into tokens anywhere, and stop strings.

The one-shot text of a case is made by decoding all of it and cutting once, without a line of the
package under test.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass

from glm_mlx.generate.engine import Event, Finished, Prefill, Token, Usage
from glm_mlx.generate.stream import stream_text
from glm_mlx.text.detokenizer import Detokenizer

_TEXTS = (
    "a",
    "ab",
    "\n",
    "\n\n",
    "中",
    "中文",
    "你好，",
    "🙂",
    "👩‍👩‍👧",
    "🇨🇳",
    "é",
    "e\u0301",
    "\x00",
)


@dataclass(frozen=True)
class Case:
    """A reply as the bytes of its tokens, and its stop strings."""

    tokens: tuple[bytes, ...]
    stops: tuple[str, ...]

    @property
    def seed(self) -> int:
        return 0

    @property
    def usage(self) -> Usage:
        return Usage(1, len(self.tokens), 0)

    def __iter__(self) -> Generator[Event, None, None]:
        """Yield the events of an engine whose ids are the tokens' places."""
        yield Prefill(1, 1)
        yield from map(Token, range(len(self.tokens)))
        yield Finished("length")

    def streamed(self) -> str:
        """Join the chunks of the stream."""
        text = Detokenizer(self.tokens.__getitem__)
        stream = stream_text(self, text, stops=self.stops)  # type: ignore[arg-type]
        return "".join(chunk.text for chunk in stream if chunk is not None)

    def one_shot(self) -> str:
        """Decode all tokens together and cut at the stop string that is complete first."""
        whole = b"".join(self.tokens).decode("utf-8", "replace")
        for end in range(len(whole) + 1):
            ending = [stop for stop in self.stops if whole[:end].endswith(stop)]
            if ending:
                return whole[: end - max(map(len, ending))]
        return whole


def random_case(draw: random.Random) -> Case:
    """Return a case; equal generators give equal cases."""
    raw = bytearray("".join(draw.choices(_TEXTS, k=draw.randint(0, 40))).encode())
    if raw and draw.random() < 0.5:
        for _ in range(draw.randint(1, 4)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)  # no longer UTF-8 everywhere
    cuts = sorted(draw.choices(range(len(raw) + 1), k=len(raw) // draw.choice((1, 3, 8))))
    edges = zip([0, *cuts], [*cuts, len(raw)], strict=True)
    whole = raw.decode("utf-8", "replace")
    stops = []
    for _ in range(draw.choice((0, 1, 1, 2, 16))):
        start = draw.randint(0, len(whole))
        stop = whole[start : start + draw.randint(1, 6)]
        stops.append(stop + draw.choice(("", "", "x", "中")) or "\ufffd")
    return Case(tuple(bytes(raw[a:b]) for a, b in edges), tuple(stops))
