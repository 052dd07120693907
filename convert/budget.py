"""A width for every matrix, so that the model meets a size at the least expected error.

Measures a sample of each matrix at every width of affine quantization. How much an error matters
is for `sensitivity` to say.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from glm_mlx.checkpoint import RowReader
from glm_mlx.checkpoint.refusal import quote
from glm_mlx.config import MODES, ModelConfig, Quantization, QuantSpec
from glm_mlx.convert.pack import Block, blocks_of, pack, read_block, unpack
from glm_mlx.convert.plan import Piece, count_parameters, matrices
from glm_mlx.convert.recipes import Recipe, check_widths, collect
from glm_mlx.convert.sensitivity import sensitivities
from glm_mlx.convert.settings import OnProgress, Progress
from glm_mlx.errors import NumericError, OptionError

_WIDTHS = tuple(sorted(MODES["affine"]["bits"]))
# A sample is rows at many places and a stretch of columns of each: 256 x 1024 values.
_PLACES = 32
_ROWS = 8
_COLUMNS = 1024
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Choice:
    """Matrices that take one width: one of them, or q, k and v, so that they can be fused.

    Attributes:
        sizes: bits -> bytes of all tensors they become.
        errors: bits -> what they add to the noise of the output.
    """

    paths: tuple[str, ...]
    sizes: Mapping[int, int]
    errors: Mapping[int, float]


def allocate(
    recipe: Recipe,
    pieces: Sequence[Piece],
    reader: RowReader,
    config: ModelConfig,
    on_progress: OnProgress | None = None,
) -> Quantization:
    """Choose the width of every matrix that the recipe leaves open.

    The result takes at most the bytes asked for, and of those as many as the widths allow. The
    same source and recipe get the same widths.

    Args:
        pieces: of the whole model, unquantized.

    Raises:
        OptionError: the target is below the smallest size, or as `Recipe.quantization`.
        NumericError: a sample holds NaN or infinity.
    """
    shapes = matrices(pieces)
    pinned = recipe.pinned(shapes)
    widths = {bits: replace(recipe.default, bits=bits) for bits in _WIDTHS}
    check_widths(dict.fromkeys(shapes, recipe.default) | pinned, shapes)
    sizes = {
        bits: {piece.name: _size_bytes(piece, pinned.get(piece.module, spec)) for piece in pieces}
        for bits, spec in widths.items()
    }
    spare_bytes = _spare_bytes(recipe, count_parameters(pieces), sizes)
    powers, errors = _measure(pieces, widths, pinned, reader, on_progress)
    weights = sensitivities(powers, config)
    choices = [
        Choice(
            tuple(unit),
            {bits: sum(sizes[bits][f"{path}.weight"] for path in unit) for bits in _WIDTHS},
            {bits: sum(weights[path] * errors[path][bits] for path in unit) for bits in _WIDTHS},
        )
        for unit in _units(path for path in shapes if path not in pinned)
    ]
    bits = spend(choices, spare_bytes)
    chosen = {
        path: widths[b] for choice, b in zip(choices, bits, strict=True) for path in choice.paths
    }
    specs = {path: pinned[path] if path in pinned else chosen[path] for path in shapes}
    most_common = Counter(filter(None, specs.values())).most_common(1)
    return collect(most_common[0][0] if most_common else recipe.default, specs, shapes)


def spend(choices: Sequence[Choice], spare_bytes: int) -> list[int]:
    """Return the width of each choice: the lowest, and what `spare_bytes` beyond those buy.

    The steps of a choice are those of the lower convex hull of its error over its size, so that
    the best buy comes first; then a step that no longer fits is passed over for smaller ones.
    """
    steps = []
    for index, choice in enumerate(choices):
        low = _WIDTHS[0]
        while low < _WIDTHS[-1]:
            rates = {
                high: (choice.errors[low] - choice.errors[high])
                / (choice.sizes[high] - choice.sizes[low])
                for high in _WIDTHS
                if high > low
            }
            high = max(rates, key=rates.__getitem__)
            steps.append((rates[high], index, low, high))
            low = high
    bits = [_WIDTHS[0]] * len(choices)
    for _, index, low, high in sorted(steps, key=lambda step: -step[0]):
        cost_bytes = choices[index].sizes[high] - choices[index].sizes[low]
        if bits[index] == low and cost_bytes <= spare_bytes:
            bits[index] = high
            spare_bytes -= cost_bytes
    return bits


def _spare_bytes(recipe: Recipe, parameters: int, sizes: Mapping[int, Mapping[str, int]]) -> int:
    """Return what the target leaves above the smallest result, which must not be less than none."""
    smallest, largest = (sum(sizes[bits].values()) for bits in (_WIDTHS[0], _WIDTHS[-1]))
    if recipe.target_bytes is not None:
        limit_bytes, asked = recipe.target_bytes, f"target_bytes {recipe.target_bytes:,}"
        reach = f"{smallest:,} to {largest:,} bytes"
    else:
        assert recipe.target_bits is not None
        limit_bytes = math.floor(recipe.target_bits * parameters / 8)
        asked = f"target_bits {recipe.target_bits:g}"
        low, high = (math.ceil(8000 * size / parameters) / 1000 for size in (smallest, largest))
        reach = f"{low:.3f} to {high:.3f} bits a weight"
    if smallest > limit_bytes:
        raise OptionError(
            f"{asked} is too small for this model, whose matrices at {_WIDTHS[0]} to "
            f"{_WIDTHS[-1]} bits make {reach}; ask for one of those",
            field=asked.partition(" ")[0],
        )
    return limit_bytes - smallest


def _size_bytes(piece: Piece, spec: QuantSpec | None) -> int:
    result = replace(piece, spec=spec) if piece.is_matrix else piece
    return sum(output.size_bytes for output in result.outputs)


def _units(paths: Iterable[str]) -> list[list[str]]:
    """Group q, k and v of each layer, everything else alone."""
    units: dict[str, list[str]] = {}
    for path in paths:
        units.setdefault(re.sub(r"\.[qkv]_proj$", ".qkv_proj", path), []).append(path)
    return list(units.values())


def _measure(
    pieces: Sequence[Piece],
    widths: Mapping[int, QuantSpec],
    pinned: Container[str],
    reader: RowReader,
    on_progress: OnProgress | None,
) -> tuple[dict[str, float], dict[str, dict[int, float]]]:
    """Return tensor name -> mean square, and open module -> bits -> relative squared error."""
    powers: dict[str, float] = {}
    errors: dict[str, dict[int, float]] = {}
    total_bytes = sum(piece.size_bytes for piece in pieces)
    done_bytes = 0
    for piece in pieces:
        sample = _sample(piece, reader)
        exact = sample.astype(mx.float32)
        powers[piece.name] = power = _power(exact)
        if piece.is_matrix and piece.module not in pinned:
            errors[piece.module] = {}
            for bits, spec in widths.items():
                result = replace(piece, spec=spec)
                noise = _power(exact - unpack(pack(sample, result), result))
                errors[piece.module][bits] = noise / power if power else 0.0
        done_bytes += piece.size_bytes
        if on_progress is not None:
            on_progress(Progress("measuring", done_bytes, total_bytes, piece.name))
    return powers, errors


def _power(values: mx.array) -> float:
    power = mx.mean(mx.square(values)).item()
    assert isinstance(power, float)
    return power


def _sample(piece: Piece, reader: RowReader) -> mx.array:
    """Read a matrix here and there, or the whole of a vector."""
    parts = []
    for number, block in enumerate(_spread(piece) if piece.is_matrix else blocks_of(piece)):
        floats, bad = read_block(reader, block)
        if bad:
            name = block.segment.weight.name
            raise NumericError(
                f"tensor {quote(name)} holds NaN or infinite values; download it again",
                file=block.segment.weight.file,
                field=name,
            )
        parts.append(_stretch(floats, number) if piece.is_matrix else floats)
    return mx.concatenate(parts)


def _spread(piece: Piece) -> Iterator[Block]:
    """Yield rows from all over a matrix, in no rhythm that heads or halves could share."""
    for segment in piece.segments:
        rows = segment.stop - segment.start
        places = min(_PLACES, -(-rows // _ROWS))
        stride = rows / places
        for place in range(places):
            shift = place * _GOLDEN % 1 * max(0.0, stride - _ROWS)
            start = segment.start + int(place * stride + shift)
            yield Block(segment, start, min(start + _ROWS, segment.stop), 0)


def _stretch(rows: mx.array, number: int) -> mx.array:
    """Return whole groups of columns, further along for each number until all had their turn."""
    width = rows.shape[1]
    count = min(_COLUMNS, width)
    first = min(number * _COLUMNS % width, width - count)
    return rows[:, first : first + count]
