"""Which matrix gets how many bits: what was asked, and what it means for the modules of a model.

Knows module paths and shapes, no weights: what a target size means is for `budget` to measure.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NoReturn, Self

from glm_mlx.checkpoint.refusal import join, quote
from glm_mlx.config import MODES, Quantization, QuantSpec
from glm_mlx.errors import InputFileError, OptionError
from glm_mlx.jsonfile import read_json_object

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"

_MIXED = {"mixed_2_6": (2, 6), "mixed_3_4": (3, 4), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}
_EXCLUSIVE = ("bits", "mixed", "target_bits", "target_bytes")
_OVERRIDE_KEYS = ("bits", "group_size", "mode")

Bits = int | Literal["none"] | None


@dataclass(frozen=True)
class Recipe:
    """How a model is to be quantized, whichever model it is; at most one of four ways to say it.

    Attributes:
        bits: one width for every matrix; where nothing is said, the mode's usual one.
        group_size: elements along the input that share a scale.
        mode: affine, mxfp4, nvfp4 or mxfp8.
        mixed: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6, which decide as mlx-lm's do.
        target_bits: bits a weight over all parameters, scales included; to be measured out.
        target_bytes: bytes of all tensors; to be measured out.
        embed_bits, head_bits: width of the embedding and of the output head; "none" leaves it
            unquantized, None treats it as the rest.
        overrides: pattern of module paths (``*.down_proj``) -> the spec keys that differ, False
            to leave them unquantized, True to leave them to the recipe; the last match wins.

    Raises:
        OptionError: naming the field, what it was and what it may be.
    """

    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    mixed: str | None = None
    target_bits: float | None = None
    target_bytes: int | None = None
    embed_bits: Bits = None
    head_bits: Bits = None
    overrides: Mapping[str, Mapping[str, object] | bool] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        given = [name for name in _EXCLUSIVE if getattr(self, name) is not None]
        if len(given) > 1:
            ways = " and ".join(map(_words, given))
            raise OptionError(f"{ways} exclude each other; give one", field=given[1])
        if self.mixed is not None and self.mixed not in list(_MIXED):
            _refuse("mixed", self.mixed, _MIXED)
        for name in ("target_bits", "target_bytes"):
            _check_positive(name, getattr(self, name))
        if self.default.mode != "affine" and given and given != ["bits"]:
            raise OptionError(
                f"{_words(given[0])} needs several widths and mode {self.mode} has one; "
                "use mode affine",
                field="mode",
            )
        for name in ("embed_bits", "head_bits"):
            if getattr(self, name) not in (None, "none"):
                self._spec_of(name, getattr(self, name))
        if not isinstance(self.overrides, Mapping):
            raise OptionError(
                f"overrides is {quote(self.overrides)}; expected patterns with what they decide",
                field="overrides",
            )
        for pattern, value in self.overrides.items():
            if not isinstance(pattern, str):
                raise OptionError(
                    f"overrides: {quote(pattern)} is not a pattern of module paths",
                    field="overrides",
                )
            self._override(pattern, value)
        own = {key: v if isinstance(v, bool) else dict(v) for key, v in self.overrides.items()}
        object.__setattr__(self, "overrides", own)  # which nobody else can change

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a shorthand: ``4bit``, ``mxfp4``, ``mixed_4_6``, ``4.6bit`` or ``5GB``."""
        if text in _MIXED:
            return cls(mixed=text)
        if text in MODES:
            return cls(mode=text)
        if match := re.fullmatch(r"([0-9]{1,9})(\.[0-9]{1,9})?bit", text):
            whole, fraction = match.groups()
            return cls(target_bits=float(whole + fraction)) if fraction else cls(bits=int(whole))
        if (size_bytes := _read_size(text)) is not None:
            return cls(target_bytes=size_bytes)
        raise OptionError(
            f"recipe {quote(text)} is unknown; write 4bit, {', '.join([*MODES, *_MIXED])}, "
            "4.6bit for a mean width or 5GB for a size"
        )

    @property
    def label(self) -> str:
        """A short name for folders and headings: ``4bit``, ``mxfp4``, ``mixed_4_6``, ``5GB``."""
        if self.target_bytes is not None:
            return f"{self.target_bytes / 1e9:g}GB"
        if self.target_bits is not None:
            return f"{float(self.target_bits)}bit"
        if self.mode != "affine":
            return self.mode
        return self.mixed or f"{self.default.bits}bit"

    @property
    def default(self) -> QuantSpec:
        """The spec of what nothing else decides; of a mixed recipe, the lower of its two."""
        bits = self.bits if self.mixed is None else _MIXED[self.mixed][0]
        return _make_spec("", bits, self.group_size, self.mode)

    @property
    def resolved(self) -> Self:
        """This recipe with its defaults written out: two that decide alike are equal."""
        only_width = self.mixed is None and not self.has_target
        return replace(
            self,
            bits=self.default.bits if only_width else None,
            group_size=self.default.group_size,
        )

    @property
    def has_target(self) -> bool:
        """Whether the weights must be measured before anything is decided."""
        return self.target_bits is not None or self.target_bytes is not None

    def quantization(self, matrices: Mapping[str, tuple[int, int]]) -> Quantization:
        """Decide for every matrix of a model, by name alone: the recipe must have no target.

        Args:
            matrices: module path -> shape (rows, width) of all that may be quantized, which is
                every linear module and the embedding, under their Hugging Face names.

        Raises:
            OptionError: a group does not divide the width of a matrix, a pattern or option
                matches none, or nothing is left to quantize.
        """
        assert not self.has_target
        specs: dict[str, QuantSpec | None] = dict.fromkeys(matrices, self.default)
        if self.mixed is not None:
            high = _make_spec("", _MIXED[self.mixed][1], self.group_size, self.mode)
            specs |= dict.fromkeys(_important(matrices), high)
        return collect(self.default, specs | self.pinned(matrices), matrices)

    def pinned(self, matrices: Mapping[str, tuple[int, int]]) -> dict[str, QuantSpec | None]:
        """Return what `embed_bits`, `head_bits` and `overrides` decide; None: unquantized.

        Raises:
            OptionError: one of them matches no matrix.
        """
        specs: dict[str, QuantSpec | None] = {}
        for name, path in (("embed_bits", EMBEDDING), ("head_bits", HEAD)):
            bits: Bits = getattr(self, name)
            if bits is not None and path not in matrices:
                raise OptionError(
                    f"{_words(name)} is {bits}, but this model's head is its embedding; "
                    "set embed bits",
                    field=name,
                )
            if bits is not None:
                specs[path] = None if bits == "none" else self._spec_of(name, bits)
        for pattern, value in self.overrides.items():
            matched = [path for path in matrices if fnmatchcase(path, pattern)]
            if not matched:
                nearest = difflib.get_close_matches(pattern, matrices, 1, 0)
                raise OptionError(
                    f"overrides: {quote(pattern)} matches no matrix; the nearest is {nearest[0]}",
                    field="overrides",
                )
            for path in matched:
                if value is True:
                    specs.pop(path, None)
                else:
                    specs[path] = self._override(pattern, value)
        return specs

    def _spec_of(self, name: str, bits: object) -> QuantSpec:
        """The recipe's own mode and group where they have that width, else affine."""
        if bits in MODES[self.mode]["bits"] and type(bits) is int:
            return _make_spec("", bits, self.group_size, self.mode)
        if type(bits) is not int or bits not in MODES["affine"]["bits"]:
            _refuse(name, bits, [*sorted(MODES["affine"]["bits"]), "none"])
        shared = self.default.group_size in MODES["affine"]["group_size"]
        return _make_spec("", bits, self.default.group_size if shared else None, "affine")

    def _override(self, pattern: str, value: Mapping[str, object] | bool) -> QuantSpec | None:
        if isinstance(value, bool):
            return self.default if value else None
        where = f"overrides: {quote(pattern)}"
        if not isinstance(value, Mapping):
            raise OptionError(
                f"{where} is {quote(value)}; expected an object, true or false", field="overrides"
            )
        for key in value.keys() - set(_OVERRIDE_KEYS):
            _refuse("key", key, _OVERRIDE_KEYS, where=where)
        mode = value.get("mode", self.mode)
        same = self.default if mode == self.mode else None
        return _make_spec(
            where,
            value.get("bits", same and same.bits),
            value.get("group_size", same and same.group_size),
            mode,
        )


def collect(
    default: QuantSpec,
    specs: Mapping[str, QuantSpec | None],
    matrices: Mapping[str, tuple[int, int]],
) -> Quantization:
    """Join decisions into one block, once every group is known to divide its matrix.

    Raises:
        OptionError: one does not, or no decision is to quantize.
    """
    check_widths(specs, matrices)
    if not any(specs.values()):
        raise OptionError("overrides leave nothing to quantize; convert without a recipe")
    return Quantization(default, {path: spec for path, spec in specs.items() if spec != default})


def check_widths(
    specs: Mapping[str, QuantSpec | None], matrices: Mapping[str, tuple[int, int]]
) -> None:
    """Raise `OptionError` if a matrix is not a whole number of groups wide."""
    misfits = {
        path: spec
        for path, spec in specs.items()
        if spec is not None and matrices[path][1] % spec.group_size
    }
    if not misfits:
        return
    first = next(iter(misfits.values()))
    alike = [path for path, spec in misfits.items() if spec.group_size == first.group_size]
    widths = sorted({matrices[path][1] for path in alike})
    cures = [
        f"use group size {size}"
        for size in sorted(MODES[first.mode]["group_size"], reverse=True)
        if not any(width % size for width in widths)
    ]
    raise OptionError(
        f"group size {first.group_size} does not divide the input width "
        f"({', '.join(map(str, widths))}) of {join(alike)}; "
        + " or ".join([*cures[:1], "leave them unquantized: false in the overrides"]),
        field="group_size",
    )


def read_overrides(file: Path) -> dict[str, Mapping[str, object] | bool]:
    """Read the JSON object of `Recipe.overrides`; what it holds is checked there.

    Raises:
        InputFileError: the file cannot be read or is not one JSON object.
    """
    overrides = read_json_object(file, error=InputFileError, absent_hint=None)
    return overrides  # type: ignore[return-value]


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``5GB``, ``4.5GiB`` or ``800MB``.

    Raises:
        OptionError: no number, or no unit, without which gigabytes might be taken for bytes.
    """
    size_bytes = _read_size(text)
    if not size_bytes:
        raise OptionError(f"size {quote(text)} is not one; write it like 5GB, 4.5GiB or 800MB")
    return size_bytes


def _read_size(text: str) -> int | None:
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,15}))? ?([kmgt])(i?)b", text.strip().lower())
    if match is None:
        return None
    whole, fraction, letter, binary = match.groups(default="")
    unit_bytes = (1024 if binary else 1000) ** ("kmgt".index(letter) + 1)
    return int(int(whole + fraction) * unit_bytes // 10 ** len(fraction))


def _important(matrices: Iterable[str]) -> list[str]:
    """Return the matrices that mlx-lm's mixed recipes give the higher width.

    As `mixed_quant_predicate_builder` in mlx-lm's convert.py, after llama.cpp's Q4_K_M.
    """
    layers = {
        path: int(match[1])
        for path in matrices
        if (match := re.match(r"model\.layers\.([0-9]+)\.", path))
    }
    count = max(layers.values(), default=-1) + 1

    def is_important(path: str) -> bool:
        if path not in layers:
            return path == HEAD
        index = layers[path]
        ends = index < count // 8 or index >= 7 * count // 8
        return path.endswith((".v_proj", ".down_proj")) and (ends or (index - count // 8) % 3 == 2)

    return [path for path in matrices if is_important(path)]


def _make_spec(where: str, bits: object, group_size: object, mode: object) -> QuantSpec:
    """Check a spec; None takes what is usual in the mode. `where` opens the message."""
    if not isinstance(mode, str) or mode not in MODES:
        _refuse("mode", mode, MODES, where=where)
    chosen = {}
    for name, value in (("bits", bits), ("group_size", group_size)):
        choices = MODES[mode][name]
        if value is None:
            value = choices[0]
        if type(value) is not int or value not in choices:
            with_mode = "" if mode == "affine" else f" with mode {mode}"
            _refuse(name, value, sorted(choices), with_mode, where=where)
        chosen[name] = value
    return QuantSpec(**chosen, mode=mode)


def _refuse(
    name: str, value: object, choices: Iterable[object], why: str = "", *, where: str = ""
) -> NoReturn:
    *others, last = map(str, choices)
    listed = f"{', '.join(others)} or {last}" if others else last
    raise OptionError(
        f"{f'{where} {name}' if where else _words(name)} {quote(value)} is not supported{why}; "
        f"use {listed}",
        field="overrides" if where else name,
    )


def _check_positive(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise OptionError(
            f"{_words(name)} {quote(value)} is not a size; use a number above 0", field=name
        )


def _words(name: str) -> str:
    """A field in words that serve whoever called it --target-bits, and whoever target_bits."""
    return {"mixed": "mixed recipe"}.get(name, name.replace("_", " "))
