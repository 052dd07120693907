"""How far a conversion is, for a person or for a program, and what to do when it was cut short.

Shared by the commands that read whole checkpoints; knows none of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from glm_mlx.cli import terminal

if TYPE_CHECKING:
    from glm_mlx.api import Progress

_JSON_EVERY_SECONDS = 0.2


class Stages:
    """Takes every `Progress` of some work and shows a stage at a time.

    For a person a line that rewrites itself, for a program JSON lines: the first and the last of
    each stage, and a few a second in between.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._stage: str | None = None
        self._line = terminal.Progress("", "bytes")
        self._pace = terminal.Pace()
        self._due = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self.close()
            self._stage = progress.stage
            self._line = terminal.Progress(progress.stage, "bytes")
            self._pace = terminal.Pace()
            self._due = 0.0
        if self._as_json:
            self._emit(progress)
        else:
            self._line(progress.done_bytes, progress.total_bytes)

    def _emit(self, progress: Progress) -> None:
        pace = self._pace(progress.done_bytes, progress.total_bytes)
        now = time.monotonic()
        if now < self._due and progress.done_bytes < progress.total_bytes:
            return
        self._due = now + _JSON_EVERY_SECONDS
        rate, remaining = (None, None) if pace is None else (round(pace[0]), round(pace[1], 1))
        terminal.emit_json(
            {
                "event": "progress",
                "stage": progress.stage,
                "done_bytes": progress.done_bytes,
                "total_bytes": progress.total_bytes,
                "bytes_per_second": rate,
                "remaining_seconds": remaining,
                "item": progress.item,
            }
        )

    def close(self) -> None:
        """Remove the line, if it is there."""
        self._line.close()


@contextmanager
def stages(*, as_json: bool, when_cut_short: str | None = None) -> Iterator[Stages]:
    """Show progress; on Ctrl-C or SIGTERM say in one line what to do then."""
    shown = Stages(as_json=as_json)
    try:
        yield shown
    except (KeyboardInterrupt, SystemExit):
        shown.close()
        if when_cut_short is not None:
            terminal.say("stopped", when_cut_short)
        raise
    finally:
        shown.close()
