"""What reaches stdout and stderr: generated text alone on the one, short lines on the other.

Knows streams and signals; neither commands nor models.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from glm_mlx.errors import GLMWarning

INTERRUPTED, _TERMINATED = 130, 143
STDOUT, STDERR = 1, 2
_PROGRESS_AFTER_SECONDS = 0.5
_PROGRESS_EVERY_SECONDS = 0.1
_CLEAR_LINE = "\r\x1b[K"


@contextmanager
def prepared() -> Iterator[None]:
    """Hold the streams and signals of this process the way a command needs them.

    A stream that was closed before the start leads nowhere, so that no file of ours gets its
    number. stdout replaces what its encoding lacks. A warning is one line. SIGTERM unwinds the
    stack, so that a model is closed, before the process ends with 143.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", GLMWarning)
            warnings.showwarning = _show_warning
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(_TERMINATED)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    say("warning", str(message))


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Let Ctrl-C set the event instead of raising; a second one ends the process with 130."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise SystemExit(INTERRUPTED)
        interrupted.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def emit(text: str) -> None:
    """Print text to stdout at once, exactly as it is."""
    print(text, end="", flush=True)


def emit_json(value: object) -> None:
    """Print a value to stdout as one line of JSON, readable where the encoding can show it."""
    readable = sys.stdout is not None and sys.stdout.encoding.lower() in ("utf-8", "utf8")
    emit(json.dumps(value, ensure_ascii=not readable) + "\n")


def printable(text: str) -> str:
    """Text that a terminal shows and never obeys: what is not printable becomes an escape.

    File names and tokens of a hostile folder may hold line breaks and control sequences.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(kind: str, text: str) -> None:
    """Print one line about the work to stderr: `glm-mlx: error: ...`, line breaks as spaces."""
    line = printable(" ".join(text.split()))
    try:
        print(f"glm-mlx: {kind}: {line}", file=sys.stderr, flush=True)
    except OSError:  # nobody can be told, which is no reason to fail
        discard(STDERR)


def human_bytes(size_bytes: float) -> str:
    """A size as a person reads it, in powers of 1,000: `18.8 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if size_bytes < 999.5:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.1f} GB"


def clock(seconds: float) -> str:
    """A time as a person reads it: `0:07`, `12:34`, `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def end_line() -> None:
    """Go to a new line of the terminal, past what the keys for Ctrl-C or Ctrl-D left there."""
    print(file=sys.stderr, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is at the other end; `stream` is None where the process started without."""
    return stream is not None and stream.isatty()


def flush() -> None:
    """Write out what stdout still holds."""
    if sys.stdout is not None:
        sys.stdout.flush()


def discard(*descriptors: int) -> None:
    """Send stdout or stderr nowhere, so that the interpreter's last flush cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


class Pace:
    """How fast work goes, as a mean since its first report.

    What was done before that, by an earlier run, says nothing about speed.
    """

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> tuple[float, float] | None:
        """Return units a second and the seconds left; None while neither is known."""
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        began, before = self._first
        if now <= began or done <= before:
            return None
        rate = (done - before) / (now - began)
        return rate, (total - done) / rate


class Progress:
    """A line on stderr that rewrites itself while work goes on.

    There is none where nobody watches, nor before the work has taken long enough to wonder. Bytes
    are shown with their rate and the time left.
    """

    def __init__(self, work: str, unit: str) -> None:
        """Name the work and its unit: `reading the prompt`, `tokens`."""
        self._work, self._unit = work, unit
        self._visible = False
        self._watched = is_terminal(sys.stderr)
        self._due = time.monotonic() + _PROGRESS_AFTER_SECONDS
        self._pace = Pace()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` units are done; all of them clears the line."""
        pace = self._pace(done, total)
        if done >= total:
            self.close()
        elif self._watched and time.monotonic() >= self._due:
            line = f"glm-mlx: {self._work}, {self._amount(done, total, pace)}"
            print(_CLEAR_LINE + line, end="", file=sys.stderr, flush=True)
            self._due = time.monotonic() + _PROGRESS_EVERY_SECONDS
            self._visible = True

    def _amount(self, done: int, total: int, pace: tuple[float, float] | None) -> str:
        if self._unit != "bytes":
            return f"{done:,} of {total:,} {self._unit}"
        amount = f"{human_bytes(done)} of {human_bytes(total)}"
        if pace is None:
            return amount
        rate, seconds = pace
        return f"{amount}, {human_bytes(rate)}/s, {clock(seconds)} left"

    def close(self) -> None:
        """Remove the line, if it is there."""
        if self._visible:
            print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
            self._visible = False
