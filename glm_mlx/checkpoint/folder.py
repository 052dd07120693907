"""Which files of a folder hold its weights, and whether the index agrees with them.

Reads names and JSON; opens no weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from glm_mlx.checkpoint.header import HEADER_LIMIT_BYTES, TensorInfo
from glm_mlx.checkpoint.refusal import bad_tensor, join, quote, unreadable
from glm_mlx.errors import CheckpointError
from glm_mlx.jsonfile import read_json_object
from glm_mlx.modelfile import find_file, own_file

SINGLE = "model.safetensors"
NUMBERED = "model-00001-of-0000n.safetensors"
INDEX = "model.safetensors.index.json"
MANIFEST = "checksums.json"

_NUMBERED = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def list_names(folder: Path) -> list[str]:
    """Return the sorted names in `folder`, refusing weights whose names differ only in case."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as cause:
        raise unreadable(folder, cause) from cause
    folded: dict[str, str] = {}
    for name in names:
        if name.casefold().endswith((".safetensors", INDEX)):
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                raise CheckpointError(
                    f"{quote(other)} and {quote(name)} differ only in case, "
                    "so one replaces the other on a Mac; keep one",
                    file=folder,
                )
    return names


def choose_shards(
    folder: Path, names: Sequence[str], index: Mapping[str, str] | None
) -> Sequence[str]:
    """Return the names of the shards, refusing a set with one missing or one too many."""
    present = [name for name in names if name.startswith("model") and name.endswith(".safetensors")]
    if index is not None:
        return _match_index(folder, names, present, sorted(set(index.values())))
    if not present:
        raise _no_weights(folder, names)
    if present != [SINGLE]:
        _check_numbers(folder, present)
    return present


def _match_index(
    folder: Path, names: Sequence[str], present: Sequence[str], wanted: Sequence[str]
) -> Sequence[str]:
    """Return `wanted`, the shards the index names, when they are the folder's `present` ones."""
    missing = sorted(set(wanted) - set(names))
    stale = sorted(set(present) - set(wanted))
    if missing:
        others = f" (it does hold {join(stale)}, which no entry names)" if stale else ""
        raise CheckpointError(
            f"names {join(missing)}, which the folder lacks{others}; download what is missing",
            file=folder / INDEX,
        )
    if stale:
        raise CheckpointError(
            f"holds {join(stale)}, which {INDEX} does not name; "
            "remove what is left over from another checkpoint, file or index",
            file=folder,
        )
    return wanted


def _check_numbers(folder: Path, present: Sequence[str]) -> None:
    """Raise unless the names are those of one whole numbered set."""
    matches = [_NUMBERED.fullmatch(name) for name in present]
    counts = {match[2] if match else "" for match in matches}
    if len(counts) > 1 or "" in counts:
        raise CheckpointError(
            f"{join(present)} are not one set, and there is no {INDEX} to choose by; "
            f"keep {SINGLE} alone or one whole set {NUMBERED}",
            file=folder,
        )
    (count,) = counts
    whole = {f"model-{i:05}-of-{count}.safetensors" for i in range(1, int(count) + 1)}
    if missing := sorted(whole - set(present)):
        raise CheckpointError(f"lacks {join(missing)}; download what is missing", file=folder)
    if beyond := sorted(set(present) - whole):
        raise CheckpointError(f"holds {join(beyond)}, beyond the last shard; remove", file=folder)


def _no_weights(folder: Path, names: Sequence[str]) -> CheckpointError:
    def ending(*suffixes: str) -> list[str]:
        return [name for name in names if name.casefold().endswith(suffixes)]

    if named_otherwise := ending(".safetensors"):
        found = f"holds {join(named_otherwise)}; rename to {SINGLE} or {NUMBERED}"
    elif pickles := ending(*_PICKLES):
        found = (
            f"holds pickle weights only ({join(pickles)}), which can run code and are never "
            "opened; get the repository's safetensors revision, or convert them where they are "
            "trusted with transformers' save_pretrained(folder, safe_serialization=True)"
        )
    elif gguf := ending(".gguf"):
        found = (
            f"holds GGUF weights only ({join(gguf)}); get the safetensors repository they were "
            "made from"
        )
    else:
        found = f"holds no weights; expected {SINGLE} or {NUMBERED}"
    return CheckpointError(found, file=folder)


def read_index(folder: Path) -> dict[str, str]:
    """Return tensor name -> shard name, each a plain name inside the folder."""
    file = own_file(folder, INDEX, error=CheckpointError)
    index = read_json_object(file, error=CheckpointError, max_bytes=HEADER_LIMIT_BYTES)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"weight_map {quote(places)} must be an object from tensor to file; download it again",
            file=file,
            field="weight_map",
        )
    for name, shard in places.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise bad_tensor(
                file,
                name,
                f"{quote(shard)} is not the plain name of a .safetensors file in the folder; "
                "download the index again",
            )
    return places


def _is_plain(name: str) -> bool:
    leaves = name.startswith(".") or any(mark in name for mark in "/\\:")
    return name.endswith(".safetensors") and name.isprintable() and not leaves


def compare_index(file: Path, index: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    """Raise unless index and shards put the same tensors into the same files."""
    cure = "download the index and the shards again, from one revision"
    for name, info in tensors.items():
        place = index.get(name, info.file.name)
        if place != info.file.name:
            raise bad_tensor(file, name, f"is in {info.file.name}, not in {place}; {cure}")
    for found, names in (
        ("names tensors that no shard holds", index.keys() - tensors.keys()),
        ("does not name tensors that its shards hold", tensors.keys() - index.keys()),
    ):
        if names:
            raise CheckpointError(
                f"{found}: {join(sorted(names))}; {cure}", file=file, field=min(names)
            )


def read_manifest(folder: Path) -> dict[str, str] | None:
    """Return file name -> sha256 in hex as the folder's manifest has it, None without one."""
    file = find_file(folder, MANIFEST, error=CheckpointError)
    if file is None:
        return None
    manifest = read_json_object(file, error=CheckpointError, max_bytes=HEADER_LIMIT_BYTES)
    files = manifest.get("files")
    if manifest.get("algorithm") != "sha256" or not isinstance(files, dict):
        raise CheckpointError(
            'must be {"algorithm": "sha256", "files": {name: hex}}; download it again', file=file
        )
    for name, digest in files.items():
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise CheckpointError(
                f"{quote(name)}: {quote(digest)} is not a sha256 in lower-case hex; "
                "download it again",
                file=file,
                field=name,
            )
    return files
