"""What every house test looks at: the root of the source tree and the files that belong to it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

_MADE_HERE = {".venv", ".git", "build", "dist"}  # plus every cache and *.egg-info


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree: a git checkout, or an unpacked source distribution."""
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tracked(repository: Path) -> list[Path]:
    """Every file of the project, relative to the root: what git tracks, else what is there."""
    if (repository / ".git").exists():
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True, text=True
        ).stdout
        found = [Path(name) for name in listing.split("\0") if name]
        return [path for path in found if (repository / path).is_file()]
    return sorted(_walk(repository))


def _walk(root: Path) -> list[Path]:
    files: list[Path] = []
    for folder, names, leaves in os.walk(root):
        names[:] = [
            name
            for name in names
            if name not in _MADE_HERE and not name.endswith(("cache", "cache__", ".egg-info"))
        ]
        files += [(Path(folder) / leaf).relative_to(root) for leaf in leaves]
    return [path for path in files if path.suffix != ".pyc"]
