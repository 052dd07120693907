"""The `quantization` block that MLX converters write: one default spec and its exceptions.

Knows neither modules nor tensors; whether the block fits them is for others to check.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from glm_mlx.config.table import Table, shown

# Mode: bits, group sizes; the first of each is what MLX takes where nothing is said.
MODES: dict[str, dict[str, tuple[int, ...]]] = {
    "affine": {"bits": (4, 2, 3, 5, 6, 8), "group_size": (64, 32, 128)},
    "mxfp4": {"bits": (4,), "group_size": (32,)},
    "nvfp4": {"bits": (4,), "group_size": (16,)},
    "mxfp8": {"bits": (8,), "group_size": (32,)},
}
_SPEC_KEYS = ("bits", "group_size", "mode")


@dataclass(frozen=True)
class QuantSpec:
    """How one matrix is packed; `mode` is affine, mxfp4, nvfp4 or mxfp8."""

    bits: int
    group_size: int
    mode: str

    def __str__(self) -> str:
        """`affine 4/64`: mode, bits, group size."""
        return f"{self.mode} {self.bits}/{self.group_size}"

    def to_json(self) -> dict[str, object]:
        """Return the spec as MLX writes it."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


@dataclass(frozen=True)
class Quantization:
    """The specs of a whole model.

    Attributes:
        overrides: module path -> its own spec, or None where the module stays unquantized.
    """

    default: QuantSpec
    overrides: Mapping[str, QuantSpec | None] = field(default_factory=dict, hash=False)

    def spec_for(self, path: str) -> QuantSpec | None:
        """Return the spec of the module at `path`, or None to leave it unquantized."""
        return self.overrides.get(path, self.default)

    def to_json(self) -> dict[str, object]:
        """Return the block as mlx-lm writes it, which `read_quantization` reads back."""
        exceptions = {
            path: False if spec is None else spec.to_json() for path, spec in self.overrides.items()
        }
        return self.default.to_json() | exceptions


def read_quantization(config: Table) -> Quantization | None:
    """Read `quantization`, and `quantization_config`, which must not contradict it.

    Refuses `quantization_config` in the formats of other libraries, named by `quant_method`.
    """
    given = [key for key in ("quantization", "quantization_config") if config.has(key)]
    if not given:
        return None
    tables = {key: Table(config.data[key], config.file, prefix=f"{key}.") for key in given}
    for key, table in tables.items():
        if table.has("quant_method"):
            method = shown(table.data["quant_method"])
            config.refuse(
                key,
                f"has quant_method {method}, not MLX's format; use the unquantized checkpoint "
                "or one quantized for MLX",
            )
    blocks = [_read_block(table) for table in tables.values()]
    if blocks[0] != blocks[-1]:
        config.refuse("quantization_config", "contradicts quantization; remove the wrong one")
    return blocks[0]


def _read_block(table: Table) -> Quantization:
    for key in ("bits", "group_size"):
        if not table.has(key):
            table.refuse(key, "is missing")
    default = _read_spec(table)
    overrides: dict[str, QuantSpec | None] = {}
    for path, value in table.data.items():
        if path in _SPEC_KEYS:
            continue
        if isinstance(value, bool):
            overrides[path] = default if value else None
        elif isinstance(value, Mapping):
            override = Table(value, table.file, prefix=f"{table.prefix}{shown(path)}.")
            for key in value.keys() - set(_SPEC_KEYS):
                override.refuse(shown(key), f"is unknown; known: {', '.join(_SPEC_KEYS)}")
            overrides[path] = _read_spec(override)
        else:
            table.refuse(shown(path), f"is {shown(value)}; expected an object, true or false")
    return Quantization(default, overrides)


def _read_spec(table: Table) -> QuantSpec:
    mode = table.data.get("mode") or "affine"
    if not isinstance(mode, str) or mode not in MODES:
        table.refuse("mode", f"is {shown(mode)}; expected one of {', '.join(MODES)}")
    chosen = {}
    for key, choices in MODES[mode].items():
        value = table.data.get(key) if table.has(key) else choices[0]
        if not isinstance(value, int) or isinstance(value, bool) or value not in choices:
            expected = ", ".join(str(choice) for choice in sorted(choices))
            table.refuse(key, f"is {shown(value)}; mode {mode} takes {expected}")
        chosen[key] = value
    return QuantSpec(**chosen, mode=mode)
