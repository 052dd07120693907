"""Fixtures of the model room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from makers import folders

from glm_mlx.config import ModelConfig, parse_config


@pytest.fixture
def make_config() -> Callable[..., ModelConfig]:
    """Return `make_config(**fields)`: the tiny glm4 config with some fields of ours replaced."""
    tiny = parse_config(folders.make_config("glm4", folders.Shape()))
    return lambda **fields: replace(tiny, **fields)
