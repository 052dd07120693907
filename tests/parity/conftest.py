"""The oracle, imported when a parity test asks for it: importing torch takes seconds, and the
default ring must pass without it."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """`makers.oracle`."""
    return importlib.import_module("makers.oracle")
