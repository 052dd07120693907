"""Processes that are hit while they convert: nothing half-made has the final name, and the next run
goes on from there to the same bytes.

`tests/bench/kill_convert.py` does this some thousand times; here are a few moments.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from makers.conversions import Conversion, Outcome, disk_calls, disturbed
from makers.folders import FolderMaker

OPTIONS = ("-q", "--q-bits", "4", "--max-shard-size", "20kB")
SHARDS = 5


@pytest.fixture(scope="module")
def conversion(make_folder: FolderMaker, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    conversion = Conversion(make_folder("chatglm", shards=2), OPTIONS)
    conversion.convert_whole(tmp_path_factory.mktemp("whole") / "model")
    return conversion


@pytest.fixture(scope="module")
def calls(conversion: Conversion, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many disk calls an uninterrupted run makes."""
    return len(disk_calls(conversion.command(tmp_path_factory.mktemp("calls") / "model")))


def hit(conversion: Conversion, place: Path, how: str, number: int) -> Outcome:
    """Send a signal before disk call `number`, look, continue, look again."""
    return conversion.try_stop(place, lambda command: disturbed(command, how, number))


@pytest.mark.parametrize("tenths", [2, 4, 6, 9])
def test_case_40_kill(conversion: Conversion, calls: int, tmp_path: Path, tenths: int) -> None:
    outcome = hit(conversion, tmp_path / "place", "kill", calls * tenths // 10)
    assert (outcome.ended.code, outcome.left) == (-9, "unfinished")
    assert outcome.shards == SHARDS or tenths < 9


@pytest.mark.parametrize("tenths", [3, 7])
@pytest.mark.parametrize(("how", "code"), [("term", 143), ("int", 130)])
def test_case_40_signals(
    conversion: Conversion, calls: int, tmp_path: Path, how: str, code: int, tenths: int
) -> None:
    outcome = hit(conversion, tmp_path / "place", how, calls * tenths // 10)
    assert (outcome.ended.code, outcome.left) == (code, "unfinished")
    assert "Traceback" not in outcome.ended.errors


def test_the_expected_result_has_several_shards(conversion: Conversion) -> None:
    assert sum(name.endswith(".safetensors") for name in conversion.expected) == SHARDS
