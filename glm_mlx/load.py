"""From a model folder to a decoder with its weights, checked before a byte of them is read.

The module tree built from the config is the plan; the checkpoint's headers are held against it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from .checkpoint import Checkpoint, TensorInfo
from .config import ModelConfig, read_config
from .errors import CheckpointError
from .model.decoder import Decoder
from .model.names import Target, dialect_of, source_of, targets_of
from .model.quant import quantize_modules

_FLOATS = ("BF16", "F16", "F32")
_CODES = {mx.uint32: ("U32",), mx.uint8: ("U8",)}


def load_model(
    folder: Path,
    *,
    rope: Mapping[str, object] | None = None,
    trust_config: bool = False,
    fuse_qkv: bool = True,
) -> tuple[Decoder, ModelConfig]:
    """Load the model in ``folder``, in any of the three layouts, quantized or not.

    Args:
        rope: settings laid over the config's, in the spelling of ``rope_parameters``:
            ``{"rope_theta": 5e6}``, ``{"rope_type": "yarn", "factor": 4}``.
        trust_config: take doubtful config values at their word, without a warning.
        fuse_qkv: as in `load_weights`.

    Raises:
        ConfigError: ``config.json`` cannot be used.
        CheckpointError: the weights are damaged or do not fit the config.
    """
    config = read_config(folder, rope=rope, trust_config=trust_config)
    decoder = load_weights(folder, config, fuse_qkv=fuse_qkv)
    return decoder, decoder.config


def load_weights(folder: Path, config: ModelConfig, *, fuse_qkv: bool = True) -> Decoder:
    """Build the decoder for ``config`` and fill it from ``folder``.

    Weights keep the dtype they are stored in. They are evaluated in the calling thread, so the
    model may then be used from any other.

    Args:
        fuse_qkv: join q, k and v into one matrix; False keeps the checkpoint's modules, which
            adapters name.

    Raises:
        CheckpointError: the weights are damaged or do not fit the config.
    """
    *_, decoder = load_steps(folder, config, fuse_qkv=fuse_qkv)
    assert decoder is not None
    return decoder


def load_steps(
    folder: Path, config: ModelConfig, *, fuse_qkv: bool = True
) -> Generator[Decoder | None, None, None]:
    """Do what `load_weights` does, yielding None after each layer and the decoder at the end."""
    checkpoint = Checkpoint.open(folder)
    decoder = build(config, checkpoint)
    weights = [
        (target.name, array if target.rows is None else array[target.rows])
        for name, array in checkpoint.read().items()
        for target in targets_of(name, config)
    ]
    decoder.load_weights(weights)
    del weights  # so that what fusing replaces is freed layer by layer
    decoder.eval()
    if fuse_qkv:
        decoder.fuse_qkv()
    for layer in decoder.layers:
        mx.eval(layer.parameters())
        yield None
    mx.eval(decoder.parameters())
    checkpoint.check_unchanged()
    yield decoder


def build(config: ModelConfig, checkpoint: Checkpoint) -> Decoder:
    """The decoder that ``config`` asks for and ``checkpoint`` can fill, still without its weights.

    Looks at names, shapes and dtypes only.

    Raises:
        CheckpointError: naming the tensors, what they are and what the config asks for.
    """
    sources = {name: targets_of(name, config) for name in checkpoint.tensors}
    names = {target.name for targets in sources.values() for target in targets}
    _check_dialect(config, checkpoint)
    _check_layers(config, checkpoint, names)
    _check_twice(sources, checkpoint)
    config = replace(config, attention_bias=_attention_bias(config, checkpoint, names))
    decoder = Decoder(config)
    if config.quantization is not None:
        try:
            quantize_modules(decoder, config.quantization, names)
        except ValueError as error:
            raise CheckpointError(
                f"the quantization in config.json does not fit the model's shapes: {error}",
                file=checkpoint.folder,
                field="quantization",
            ) from error
    _check_quantized(config, checkpoint, names)

    wanted: dict[str, mx.array] = dict(tree_flatten(decoder.parameters()))
    missing = dict.fromkeys(source_of(name, config.family) for name in wanted if name not in names)
    if missing:
        raise CheckpointError(
            f"tensors are missing: {_listed(missing)}",
            file=checkpoint.folder,
            hint="is the download complete?",
        )
    extra = [
        source
        for source, targets in sources.items()
        if any(target.name not in wanted for target in targets)
    ]
    if extra:
        raise CheckpointError(
            f"tensors that a {config.family} model does not have: {_listed(sorted(extra))}",
            file=checkpoint.folder,
        )
    position = {name: i for i, name in enumerate(wanted)}
    filled = {source: [target.name for target in targets] for source, targets in sources.items()}
    misfits = {
        source: misfit
        for source in sorted(filter(filled.get, filled), key=lambda s: position[filled[s][0]])
        if (misfit := _misfit(checkpoint.tensors[source], [wanted[n] for n in filled[source]]))
    }
    if misfits:
        raise CheckpointError(
            f"tensors that do not fit config.json: {_listed(misfits.values(), '; ')}",
            file=checkpoint.folder,
            field=next(iter(misfits)),
        )
    return decoder


def _check_dialect(config: ModelConfig, checkpoint: Checkpoint) -> None:
    dialect = dialect_of(checkpoint.tensors)
    if dialect not in (None, config.family):
        raise CheckpointError(
            f"config.json says model_type {config.family!r}, but the tensor names are those of "
            f"{dialect}",
            file=checkpoint.folder,
            field="model_type",
        )


def _check_layers(config: ModelConfig, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Compare layer counts first: a config of a million layers must not be built to be refused."""
    layers = {m[1] for m in (re.match(r"model\.layers\.(\d+)\.", name) for name in names) if m}
    if len(layers) != config.num_layers:
        raise CheckpointError(
            f"config.json asks for {config.num_layers} layers, the tensors make {len(layers)}",
            file=checkpoint.folder,
            field="num_hidden_layers",
            hint="is the download complete?" if len(layers) < config.num_layers else None,
        )


def _check_twice(sources: Mapping[str, Iterable[Target]], checkpoint: Checkpoint) -> None:
    """Refuse tensors that would fill the same parameter, such as q beside a fused q/k/v."""
    source_of_target: dict[str, str] = {}
    for source, targets in sources.items():
        for target in targets:
            other = source_of_target.setdefault(target.name, source)
            if other != source:
                raise CheckpointError(
                    f"{target.name} is there under two names: {other} and {source}",
                    file=checkpoint.folder,
                    field=source,
                )


def _attention_bias(config: ModelConfig, checkpoint: Checkpoint, names: Iterable[str]) -> bool:
    """Whether q, k and v have biases: what the tensors say, unless the config contradicts them."""
    found = any(name.endswith(".q_proj.bias") for name in names)
    if config.attention_bias not in (None, found):
        raise CheckpointError(
            f"config.json says q/k/v bias {str(config.attention_bias).lower()}, but the tensors "
            f"{'hold' if found else 'lack'} q/k/v biases",
            file=checkpoint.folder,
            field="attention_bias",
        )
    return found


def _check_quantized(config: ModelConfig, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    scales = sorted(name for name in names if name.endswith(".scales"))
    if scales and config.quantization is None:
        raise CheckpointError(
            f"the weights are quantized ({_listed(scales)}), but config.json has no "
            '"quantization" block with bits and group_size',
            file=checkpoint.folder,
            field="quantization",
        )
    if not scales and config.quantization is not None:
        raise CheckpointError(
            'config.json has a "quantization" block, but no tensor is quantized',
            file=checkpoint.folder,
            field="quantization",
        )


def _misfit(info: TensorInfo, parts: list[mx.array]) -> str | None:
    """How a tensor differs from the parameters that its rows will fill, if it does."""
    first = parts[0]
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    if info.shape != shape:
        return f"{info.file.name}: tensor {info.name} has shape {info.shape}, expected {shape}"
    codes = _CODES.get(first.dtype, _FLOATS)
    if info.dtype not in codes:
        expected = " or ".join(codes)
        return f"{info.file.name}: tensor {info.name} has dtype {info.dtype}, expected {expected}"
    return None


def _listed(items: Iterable[str], separator: str = ", ") -> str:
    """The first five, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return separator.join(items[:5]) + more
