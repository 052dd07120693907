"""What a conversion did, tensor by tensor: kept beside the weights as JSON, shown as a table.

Holds nothing that differs between two runs of the same conversion.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glm_mlx.errors import CheckpointError
from glm_mlx.jsonfile import read_json_object
from glm_mlx.modelfile import find_file

REPORT = "conversion.json"
_MAX_BYTES = 4 << 20
_LAYER = re.compile(r"(?:.*\.)?layers\.(\d+)\.")


@dataclass(frozen=True)
class TensorReport:
    """One tensor of the result.

    Attributes:
        shape: of its floats, whatever they are packed into.
        stored: bf16, f16, f32, or mode, bits and group size such as `affine 4/64`.
        size_bytes: with scales and biases.
        relative_error: |W - W'| / |W| (Frobenius) over the measured rows; 0 where nothing is lost.
        beyond: values that were cut to the largest of the result's dtype.
    """

    name: str
    shape: tuple[int, ...]
    stored: str
    size_bytes: int
    relative_error: float
    beyond: int = 0


@dataclass(frozen=True)
class ConversionReport:
    """What was converted, how, and how exactly.

    Attributes:
        source: Hub id, or the name of the source folder.
        revision: the commit of a Hub source.
        layout: mlx, hf or chatglm.
        recipe: the options that decided the result.
        versions: of this package and of MLX.
        tensors: in the order they were made.
        skipped: source tensors without a place in the result: rotary frequencies, a tied head.
        files: weight file -> sha256.
    """

    source: str
    revision: str | None
    layout: str
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    tensors: tuple[TensorReport, ...]
    skipped: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """All bytes over all parameters, as mlx-lm counts."""
        return self.weight_bytes * 8 / self.parameters

    @property
    def layers(self) -> dict[str, float]:
        """Part of the model, from the embedding to the head -> its error.

        The error is the root mean square of the relative errors of the part's matrices.
        """
        found: dict[str, list[float]] = {}
        for tensor in sorted(self.tensors, key=lambda tensor: _depth(tensor.name)):
            if len(tensor.shape) == 2:
                found.setdefault(_part_of(tensor.name), []).append(tensor.relative_error)
        return {part: math.sqrt(sum(e * e for e in es) / len(es)) for part, es in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """What `conversion.json` holds, the sums included."""
        return asdict(self) | {
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "layers": {part: round(error, 6) for part, error in self.layers.items()},
        }

    def to_json(self) -> bytes:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def read(cls, folder: Path) -> ConversionReport | None:
        """Return the report of a converted folder, None if it has none.

        Raises:
            CheckpointError: the file is damaged.
        """
        file = find_file(folder, REPORT, error=CheckpointError)
        if file is None:
            return None
        data = read_json_object(file, error=CheckpointError, max_bytes=_MAX_BYTES)
        try:
            return cls._from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise CheckpointError(
                "is not a conversion report; convert the model again, or remove the file", file=file
            ) from cause

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> ConversionReport:
        return cls(
            source=str(data["source"]),
            revision=None if data["revision"] is None else str(data["revision"]),
            layout=str(data["layout"]),
            recipe=dict(data["recipe"]),
            versions={str(k): str(v) for k, v in data["versions"].items()},
            tensors=tuple(tensor_report(entry) for entry in data["tensors"]),
            skipped=tuple(map(str, data["skipped"])),
            files={str(k): str(v) for k, v in data["files"].items()},
        )

    def table(self) -> str:
        """The report for a person: a line for each part of the model, then the sums."""
        rows = [("part", "stored", "bytes", "relative error")]
        for part, error in self.layers.items():
            mine = [tensor for tensor in self.tensors if _part_of(tensor.name) == part]
            stored = dict.fromkeys(t.stored for t in mine if len(t.shape) == 2)
            size_bytes = sum(tensor.size_bytes for tensor in mine)
            rows.append((part, ", ".join(stored), f"{size_bytes:,}", f"{error:.4%}"))
        total = f"{self.bits_per_weight:.3f} bits a weight"
        rows.append(("all", total, f"{self.weight_bytes:,}", ""))
        return _align(rows)


def tensor_report(entry: Mapping[str, Any]) -> TensorReport:
    """Read back what `asdict` made of a tensor's report."""
    return TensorReport(
        str(entry["name"]),
        tuple(int(n) for n in entry["shape"]),
        str(entry["stored"]),
        int(entry["size_bytes"]),
        float(entry["relative_error"]),
        int(entry["beyond"]),
    )


def _part_of(name: str) -> str:
    """`layer 3` for what is in a layer, else the module's own name."""
    match = _LAYER.match(name)
    return f"layer {match[1]}" if match else name.rpartition(".")[0].rpartition(".")[2]


def _depth(name: str) -> int:
    """Where in the model a tensor works: before, in, or after the layers, whatever file has it."""
    match = _LAYER.match(name)
    if match:
        return int(match[1])
    return -1 if "embed" in name else sys.maxsize


def _align(rows: Iterable[tuple[str, ...]]) -> str:
    """Rows as lines: text columns to the left, the last two, numbers, to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i >= len(row) - 2 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"
