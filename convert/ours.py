"""Which files of a folder a conversion wrote, and may remove; all others are somebody's.

Looks at names and at the two files that a finished result is told by. Changes nothing.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from glm_mlx.checkpoint.folder import INDEX, MANIFEST, read_manifest
from glm_mlx.checkpoint.writer import PART
from glm_mlx.convert.files import LICENCES
from glm_mlx.convert.learned import LEARNED
from glm_mlx.convert.report import REPORT, ConversionReport
from glm_mlx.errors import CheckpointError
from glm_mlx.hub import CARD

_WEIGHTS = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors", re.ASCII)
_FINDER = ".DS_Store"
_COMPANION = "._"  # where a volume holds no extended attributes, a Mac keeps them in ._NAME
_NAMES = {
    *("config.json", "generation_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *(INDEX, MANIFEST, REPORT, CARD, LEARNED, _FINDER),
    *LICENCES,
}


def is_ours(name: str) -> bool:
    """Whether a conversion writes a file of this name, or a system does beside it."""
    name = name.removeprefix(_COMPANION).removesuffix(PART)
    return name in _NAMES or _WEIGHTS.fullmatch(name) is not None


def strangers(folder: Path) -> list[str]:
    """Return the sorted names in `folder` of all that is no regular file or not `is_ours`."""
    return sorted(
        name
        for name in os.listdir(folder)
        if not is_ours(name) or not _is_regular_file(folder / name)
    )


def strangers_in_result(folder: Path) -> list[str] | None:
    """Return what a finished result holds beside its own files; None if it is no result of ours.

    Its own files are those that its manifest lists and that are `is_ours`, whatever they hold now.
    """
    try:
        report, manifest = ConversionReport.read(folder), read_manifest(folder)
    except CheckpointError:
        return None
    if report is None or manifest is None:
        return None
    listed = {*manifest, MANIFEST, REPORT, CARD, _FINDER}
    added = {name for name in os.listdir(folder) if name.removeprefix(_COMPANION) not in listed}
    return sorted(added.union(strangers(folder)))


def _is_regular_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
