"""Activation-aware scaling for GLM: columns that a text excites are packed at finer steps.

AWQ (Lin et al. 2023, arXiv:2306.00978) as factors alone: a column of a matrix is multiplied and
what feeds it divided, so that the model computes what it did and only the rounding changes. One
layer of weights is in memory at a time; applying the factors is for `pack`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import mlx.core as mx
import mlx.nn as nn

from glm_mlx.checkpoint import Checkpoint, RowReader
from glm_mlx.checkpoint.header import DTYPES
from glm_mlx.config import ModelConfig, Quantization
from glm_mlx.convert.pack import Transform, pack, unpack
from glm_mlx.convert.plan import Piece, plan_pieces, quantized
from glm_mlx.convert.settings import OnProgress, Progress
from glm_mlx.convert.walk import Meter, Walk, read_rows

# A factor is activation^alpha / weight^beta: both 0 is plain rounding, beta alone 0 is AWQ.
_ALPHAS = [i / 10 for i in range(11)]
_BETAS = [i / 4 for i in range(4)]
_SAMPLED_ROWS = 1024  # of each matrix: a factor serves all rows, a sample of them finds it
_LEAST = 1e-4  # of the largest: below it, columns count as equally quiet


@dataclass(frozen=True)
class Fold:
    """Factors that multiply the columns of matrices and divide what feeds them.

    Attributes:
        matrices: the tensors that share an input.
        norm: the norm that feeds them, if one does.
        rows: else, the tensors that do, and the first row of each that is divided.
        repeats: query heads that read one value head: their columns share a factor.
        width: of such a head.
    """

    matrices: tuple[str, ...]
    norm: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    repeats: int = 1
    width: int = 1

    def share(self, columns: mx.array) -> mx.array:
        """Return ``(C / repeats,)`` numbers, the means of the ``(C,)`` that share a factor."""
        return mx.mean(columns.reshape(-1, self.repeats, self.width), axis=1).reshape(-1)

    def spread(self, factors: mx.array) -> mx.array:
        """Return the factor of each of the ``(C,)`` columns."""
        return mx.repeat(factors.reshape(-1, 1, self.width), self.repeats, axis=1).reshape(-1)


def folds_of(layer: str, config: ModelConfig) -> dict[str, Fold]:
    """Return module -> the fold that scales its input, for the layer at the path ``layer``.

    glm4's other two norms act on what o_proj and down_proj put out; no column follows them.
    """
    q, k, v, o = (f"{layer}.self_attn.{part}_proj" for part in "qkvo")
    gate_up, down = f"{layer}.mlp.gate_up_proj", f"{layer}.mlp.down_proj"
    values = {f"{v}.weight": 0} | ({f"{v}.bias": 0} if config.attention_bias else {})
    return {
        q: Fold((f"{q}.weight", f"{k}.weight", f"{v}.weight"), f"{layer}.input_layernorm.weight"),
        o: Fold(
            (f"{o}.weight",),
            rows=values,
            repeats=config.num_heads // config.num_kv_heads,
            width=config.head_dim,
        ),
        gate_up: Fold((f"{gate_up}.weight",), f"{layer}.post_attention_layernorm.weight"),
        # The second half of gate_up_proj multiplies the first after its gating.
        down: Fold((f"{down}.weight",), rows={f"{gate_up}.weight": config.intermediate_size}),
    }


_HEAD = Fold(("lm_head.weight",), "model.norm.weight")


class ColumnMeter(Meter):
    """Sums what enters a module, by column."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.magnitude = mx.array(0.0)
        self.power = mx.array(0.0)

    def observe(self, inputs: mx.array) -> None:
        self.magnitude = self.magnitude + mx.sum(mx.abs(inputs), axis=0)
        self.power = self.power + mx.sum(mx.square(inputs), axis=0)
        mx.eval(self.magnitude, self.power)


def learn_transforms(
    checkpoint: Checkpoint,
    config: ModelConfig,
    quantization: Quantization,
    ids: Sequence[Sequence[int]],
    *,
    on_progress: OnProgress | None = None,
) -> dict[str, Transform]:
    """Return piece name -> the factors under which the packed model errs least on a text.

    Deterministic. Holds one layer of weights and the hidden states of the text, all in fp32.

    Args:
        config: as the loader resolved it for the checkpoint.
        quantization: how the weights will be packed.
        ids: the text, as rows of token ids.
        on_progress: called after each layer.

    Raises:
        NumericError: a tensor holds NaN or infinity.
    """
    planned, _ = plan_pieces(checkpoint, config, layout="mlx", dtype=None)
    pieces = {piece.name: piece for piece in quantized(planned, quantization)}
    total_bytes = sum(piece.size_bytes for piece in planned if ".layers." in piece.name)
    done_bytes = 0
    transforms: dict[str, Transform] = {}
    with RowReader(checkpoint) as reader:
        walk = Walk(reader, config, pieces, ids)
        for index in range(config.num_layers):
            path = f"model.layers.{index}"
            weights, meters = walk.pass_layer(path, ColumnMeter)
            for module, fold in folds_of(path, config).items():
                samples = {name: _sampled(weights[name]) for name in fold.matrices}
                norm = None if fold.norm is None else weights[fold.norm]
                _learn(fold, meters[module], samples, norm, pieces, transforms)
            done_bytes += sum(pieces[name].size_bytes for name in weights)
            if on_progress is not None:
                on_progress(Progress("learning", done_bytes, total_bytes, path))
        if not config.tie_word_embeddings:
            norm, meter = walk.reach_head(ColumnMeter)
            head = pieces["lm_head.weight"]
            rows = read_rows(reader, head, range(0, head.shape[0], _stride(head.shape[0])))
            _learn(_HEAD, meter, {head.name: rows}, norm, pieces, transforms)
    return transforms


def _learn(
    fold: Fold,
    meter: ColumnMeter,
    samples: Mapping[str, mx.array],
    norm: mx.array | None,
    pieces: Mapping[str, Piece],
    transforms: dict[str, Transform],
) -> None:
    """Search the factors of a fold and enter them into the transforms of its tensors.

    Args:
        samples: matrix -> rows of it.
        norm: the weight of the norm that feeds them, if one does.
    """
    import numpy as np

    if all(pieces[name].spec is None for name in fold.matrices):
        return
    factors = _search(fold, meter, samples, pieces)
    rows = {name: factors for name in fold.rows}
    columns = fold.spread(factors)
    if fold.norm is not None and norm is not None:
        rows[fold.norm] = factors
        # What the norm loses in its own dtype, the columns make up for.
        stored = (norm * (1 / factors)).astype(DTYPES[pieces[fold.norm].dtype])
        columns = mx.where(stored == 0, 1, norm / stored.astype(mx.float32))
    for name, divisors in rows.items():
        whole = np.ones(pieces[name].shape[0], np.float32)
        whole[fold.rows.get(name, 0) :] = np.array(1 / divisors)
        transforms[name] = replace(transforms.get(name, Transform()), rows=whole)
    for name in fold.matrices:
        known = transforms.get(name, Transform())
        transforms[name] = replace(known, columns=np.array(columns))


def _search(
    fold: Fold, meter: ColumnMeter, samples: Mapping[str, mx.array], pieces: Mapping[str, Piece]
) -> mx.array:
    """Return the factors under which packing errs least in what the matrices put out.

    Columns count as independent, which rounding makes them: of an input, its mean square by column
    is then all that matters.
    """
    magnitudes = mx.concatenate([mx.abs(rows) for rows in samples.values()])
    activation = _floored(fold.share(meter.magnitude))
    weight = _floored(fold.share(mx.mean(magnitudes, axis=0)))
    best, least = mx.ones_like(weight), float("inf")
    for alpha, beta in product(_ALPHAS, _BETAS):
        factors = activation**alpha / weight**beta
        factors = factors / mx.exp(mx.mean(mx.log(factors)))
        columns = fold.spread(factors)
        errors = [
            _repacked(rows * columns, pieces[name]) / columns - rows
            for name, rows in samples.items()
        ]
        error = mx.sum(mx.square(mx.concatenate(errors)) * meter.power).item()
        assert isinstance(error, float)
        if error < least:
            best, least = factors, error
    return best


def _repacked(rows: mx.array, piece: Piece) -> mx.array:
    return unpack(pack(rows, piece), piece)


def _floored(columns: mx.array) -> mx.array:
    """Keep clear of columns that are never excited, or hold no weight."""
    largest = mx.max(columns)
    return mx.where(largest > 0, mx.maximum(columns / largest, _LEAST), 1)


def _stride(rows: int) -> int:
    return -(-rows // _SAMPLED_ROWS)


def _sampled(matrix: mx.array) -> mx.array:
    return matrix[:: _stride(matrix.shape[0])]
