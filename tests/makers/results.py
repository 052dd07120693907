"""The two files by which a finished result is told from any other folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

REPORT = {
    "source": "tiny",
    "revision": None,
    "layout": "mlx",
    "recipe": {},
    "versions": {},
    "tensors": [],
    "skipped": [],
    "files": {},
}


def result_files(names: Iterable[str], *, recipe: str = "one") -> dict[str, bytes]:
    """Return manifest and report of a result that holds the files named, by name."""
    digest = hashlib.sha256(recipe.encode()).hexdigest()
    manifest = {"algorithm": "sha256", "files": dict.fromkeys(sorted(names), digest)}
    return {
        "checksums.json": json.dumps(manifest).encode(),
        "conversion.json": json.dumps(REPORT).encode(),
    }
