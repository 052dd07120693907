"""The progress line: what it says, when it is there, and how speed is counted."""

from __future__ import annotations

import io
import sys

import pytest

from glm_mlx.cli import terminal


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Put a terminal in the place of stderr; pytest takes it back between fixture and test."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


def test_bytes_have_a_rate_and_a_rest(monkeypatch: pytest.MonkeyPatch, time: Clock) -> None:
    screen = watch(monkeypatch)
    progress = terminal.Progress("converting", "bytes")
    progress(1_000_000_000, 4_900_000_000)  # an earlier run did most of it
    time.now += 2
    progress(1_400_000_000, 4_900_000_000)
    line = "\r\x1b[Kglm-mlx: converting, 1.4 GB of 4.9 GB, 200 MB/s, 0:18 left"
    assert screen.getvalue() == line
    progress(4_900_000_000, 4_900_000_000)
    assert screen.getvalue() == line + "\r\x1b[K"


def test_the_line_is_not_there_at_once_nor_written_at_every_step(
    monkeypatch: pytest.MonkeyPatch, time: Clock
) -> None:
    screen = watch(monkeypatch)
    progress = terminal.Progress("reading the prompt", "tokens")
    progress(1, 5000)
    assert screen.getvalue() == ""
    time.now += 0.6
    for done in range(2, 100):
        progress(done, 5000)
    assert screen.getvalue() == "\r\x1b[Kglm-mlx: reading the prompt, 2 of 5,000 tokens"
    progress.close()
    progress.close()
    assert screen.getvalue().endswith("tokens\r\x1b[K")


def test_there_is_no_line_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch, time: Clock
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = terminal.Progress("converting", "bytes")
    time.now += 10
    progress(1, 2)
    progress(2, 2)
    assert stream.getvalue() == ""


def test_no_pace_before_anything_was_done(time: Clock) -> None:
    pace = terminal.Pace()
    assert pace(50, 100) is None
    time.now += 1
    assert pace(50, 100) is None
    time.now += 1
    assert pace(70, 100) == (10, 3)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0:00"), (7, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")],
)
def test_times_as_a_person_reads_them(seconds: float, expected: str) -> None:
    assert terminal.clock(seconds) == expected
