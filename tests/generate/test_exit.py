"""A process that generates ends with the code it should, in every way `exit_matrix.py` knows."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

MATRIX: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "bench/exit_matrix.py"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [(scenario.__name__, code) for scenario, code in MATRIX["SCENARIOS"].items()],
)
def test_exit(name: str, expected: int) -> None:
    assert MATRIX["run"](name, expected) == str(expected)
