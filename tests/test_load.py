"""What a folder must hold: every contradiction is named, from headers alone, before any data."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import mlx.core as mx
import pytest
from makers.folders import DIALECTS, Config, FolderMaker, Tensors

from glm_mlx.checkpoint import Checkpoint
from glm_mlx.config import read_config
from glm_mlx.errors import CheckpointError, InputFileError
from glm_mlx.load import build, load_model

FOUR_BITS = {"bits": 4, "group_size": 64}
LAYER = "model.layers.1"
CHATGLM_LAYER = "transformer.encoder.layers.1"
Edit = Callable[[Any], object]


@pytest.fixture
def headers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if tensor data is asked for."""

    def read(*_: object, **__: object) -> NoReturn:
        raise AssertionError("tensor data was read")

    monkeypatch.setattr(Checkpoint, "read", read)


def drop(*names: str) -> Edit:
    return lambda table: [table.pop(name) for name in names]


def put(**values: object) -> Edit:
    return lambda table: table.update(values)


def add(name: str, *shape: int, dtype: mx.Dtype = mx.float32) -> Edit:
    return lambda tensors: tensors.update({name: mx.zeros(shape, dtype)})


def drop_matching(part: str) -> Edit:
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name]


def rename(old: str, new: str) -> Edit:
    def edit(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return edit


def override(path: str, spec: object) -> Edit:
    def edit(config: Config) -> None:
        config["quantization"] |= {path: spec}  # type: ignore[operator]

    return edit


# What is wrong, the folder that is wrong so, and what the message must name.
TENSORS: dict[str, tuple[str, Edit, list[str]]] = {
    "missing": ("glm4", drop("model.norm.weight"), ["missing", "model.norm.weight"]),
    "missing-chatglm": (
        "chatglm",
        drop(f"{CHATGLM_LAYER}.self_attention.query_key_value.weight"),
        ["missing", f"{CHATGLM_LAYER}.self_attention.query_key_value.weight"],
    ),
    "missing-many": (
        "glm4",
        drop_matching("proj.weight"),
        ["missing", "model.layers.0.self_attn.q_proj.weight", "and 7 more"],
    ),
    "missing-one-bias": (
        "glm",
        drop(f"{LAYER}.self_attn.k_proj.bias"),
        ["missing", f"{LAYER}.self_attn.k_proj.bias"],
    ),
    "missing-layer": ("glm4", drop_matching("layers.1."), ["2 layers", "1"]),
    "missing-head": ("glm", drop("lm_head.weight"), ["missing", "lm_head.weight"]),
    "extra": ("glm", add("model.layers.0.surprise.weight", 3), ["model.layers.0.surprise.weight"]),
    "extra-layer": (
        "glm4",
        add("model.layers.2.input_layernorm.weight", 64),
        ["2 layers", "3"],
    ),
    "extra-many": (
        "glm4",
        lambda tensors: [add(f"stray{i}.weight", 3)(tensors) for i in range(9)],
        ["stray0.weight", "stray4.weight", "and 4 more"],
    ),
    "extra-bias": (
        "glm",
        add(f"{LAYER}.self_attn.o_proj.bias", 64),
        [f"{LAYER}.self_attn.o_proj.bias"],
    ),
    "extra-head": (
        "glm4",
        add("score.weight", 2, 64),
        ["score.weight"],
    ),
    "wrong-shape": (
        "glm",
        add(f"{LAYER}.mlp.down_proj.weight", 64, 127),
        [f"{LAYER}.mlp.down_proj.weight", "(64, 127)", "(64, 128)"],
    ),
    "wrong-rank": ("glm", add("model.norm.weight", 64, 1), ["model.norm.weight", "(64, 1)"]),
    "scalar": ("glm", add("model.norm.weight"), ["model.norm.weight", "()"]),
    "wrong-shape-chatglm": (
        "chatglm",
        add(f"{CHATGLM_LAYER}.mlp.dense_h_to_4h.weight", 255, 64),
        [f"{CHATGLM_LAYER}.mlp.dense_h_to_4h.weight", "(255, 64)", "(256, 64)"],
    ),
    "wrong-shape-many": (
        "glm4",
        lambda tensors: [
            add(name, 65)(tensors) for name in list(tensors) if name.endswith("norm.weight")
        ],
        ["model.layers.0.input_layernorm.weight", "(65,)", "(64,)", "and 4 more"],
    ),
    "int-norm": (
        "glm4",
        add("model.norm.weight", 64, dtype=mx.int32),
        ["model.norm.weight", "I32", "F32"],
    ),
    "int-matrix": (
        "glm",
        add("lm_head.weight", 352, 64, dtype=mx.uint32),
        ["lm_head.weight", "U32"],
    ),
    "fused-and-apart": (
        "glm",
        add(f"{LAYER}.self_attn.qkv_proj.weight", 128, 64),
        ["two names", f"{LAYER}.self_attn"],
    ),
    "of-llama": ("glm", rename("gate_up_proj", "gate_proj"), ["model_type", "Llama"]),
    "of-glm4v": ("chatglm", add("transformer.vision.boi", 1, 1, 64), ["GLM-4V"]),
}
CONFIGS: dict[str, tuple[str, Edit, list[str]]] = {
    "no-bias": ("glm4", put(attention_bias=False), ["attention_bias", "hold"]),
    "no-bias-chatglm": ("chatglm", put(add_qkv_bias=False), ["bias", "hold"]),
    "more-layers": ("glm4", put(num_hidden_layers=3), ["num_hidden_layers", "3", "2"]),
    "most-layers": ("glm4", put(num_hidden_layers=1024), ["num_hidden_layers", "1024"]),
    "fewer-layers": ("glm", put(num_hidden_layers=1), ["num_hidden_layers", "1", "2"]),
    "kv-heads": ("glm", put(num_key_value_heads=4), ["self_attn.k_proj", "(32, 64)", "(64, 64)"]),
    "kv-heads-chatglm": (
        "chatglm",
        put(multi_query_group_num=4),
        ["query_key_value", "(128, 64)", "(192, 64)"],
    ),
    "heads": ("glm4", put(num_attention_heads=8), ["self_attn.q_proj", "(64, 64)", "(128, 64)"]),
    "head-dim": ("glm4", put(head_dim=32), ["self_attn.q_proj", "(64, 64)", "(128, 64)"]),
    "hidden-size": ("glm", put(hidden_size=128), ["(352, 64)", "(352, 128)"]),
    "vocabulary": ("glm", put(vocab_size=4_000_000), ["embed_tokens", "(4000000, 64)"]),
    "ffn": ("glm4", put(intermediate_size=1 << 20), ["mlp.gate_up_proj", "(256, 64)"]),
    "glm-is-not-glm4": ("glm", put(model_type="glm4"), ["model_type", "glm4", "those of glm"]),
    "glm4-is-not-glm": ("glm4", put(model_type="glm"), ["model_type", "'glm'", "those of glm4"]),
    "tied-by-mistake": ("glm4", put(attention_bias=None, tie_word_embeddings="x"), ["tie_word"]),
}
QUANTIZED: dict[str, tuple[str, Edit, list[str]]] = {
    "absent": ("glm4", drop("quantization", "quantization_config"), ["quantization"]),
    "other-bits": ("glm4", override("bits", 8), ["weight", "(352, 8)", "(352, 16)"]),
    "other-group": ("chatglm", override("group_size", 32), ["scales", "(352, 1)", "(352, 2)"]),
    "other-mode": ("glm", put(quantization={"mode": "mxfp4"}), ["quantization"]),
    "group-too-wide": ("glm", override("group_size", 128), ["quantization"]),
    "left-out-but-packed": ("glm", override("lm_head", False), ["lm_head"]),
    "unknown-mode": ("glm4", override("mode", "q4_k"), ["mode", "q4_k"]),
    "bits-7": ("glm4", override("bits", 7), ["bits", "7"]),
}


def refusal(folder: Any, parts: list[str]) -> InputFileError:
    """Load the folder; expect one line that names `parts`, itself or as its field, in 2 seconds."""
    started = time.perf_counter()
    with pytest.raises(InputFileError) as caught:
        load_model(folder)
    assert time.perf_counter() - started < 2
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    for part in parts:
        assert part in f"{message} [{caught.value.field}]"
    return caught.value


@pytest.mark.usefixtures("headers_only")
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(case: str, make_folder: FolderMaker) -> None:
    dialect, edit, parts = TENSORS[case]
    assert isinstance(refusal(make_folder(dialect, edit_tensors=edit), parts), CheckpointError)


@pytest.mark.usefixtures("headers_only")
@pytest.mark.parametrize("case", CONFIGS)
def test_config_that_contradicts_the_tensors(case: str, make_folder: FolderMaker) -> None:
    dialect, edit, parts = CONFIGS[case]
    refusal(make_folder(dialect, edit_config=edit), parts)


@pytest.mark.usefixtures("headers_only")
@pytest.mark.parametrize("case", QUANTIZED)
def test_quantization_that_contradicts_the_tensors(case: str, make_folder: FolderMaker) -> None:
    dialect, edit, parts = QUANTIZED[case]
    refusal(make_folder(dialect, quantize=FOUR_BITS, edit_config=edit), parts)


@pytest.mark.usefixtures("headers_only")
def test_biases_the_config_promises(make_folder: FolderMaker) -> None:
    folder = make_folder("glm4", edit_tensors=drop_matching("proj.bias"))
    refusal(folder, ["attention_bias", "lack"])


@pytest.mark.usefixtures("headers_only")
def test_quantization_of_plain_weights(make_folder: FolderMaker) -> None:
    folder = make_folder("glm4", edit_config=put(quantization=FOUR_BITS))
    refusal(folder, ["quantization", "no tensor is quantized"])


@pytest.mark.usefixtures("headers_only")
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("bias", [True, False])
def test_build_infers_bias_from_headers(dialect: str, bias: bool, make_folder: FolderMaker) -> None:
    key = "add_qkv_bias" if dialect == "chatglm" else "attention_bias"
    folder = make_folder(dialect, bias=bias, edit_config=drop(key))
    config = read_config(folder)
    assert config.attention_bias is None
    assert build(config, Checkpoint.open(folder)).config.attention_bias is bias


@pytest.mark.usefixtures("headers_only")
def test_refusing_a_huge_config_allocates_nothing(make_folder: FolderMaker) -> None:
    folder = make_folder("glm4", edit_config=put(vocab_size=4_000_000))
    mx.reset_peak_memory()
    before_bytes = mx.get_active_memory()
    refusal(folder, ["embed_tokens"])
    assert mx.get_peak_memory() - before_bytes < 1 << 20


@pytest.mark.parametrize("dialect", DIALECTS)
def test_silent_config_loads_as_the_talkative_one(dialect: str, make_folder: FolderMaker) -> None:
    key = "add_qkv_bias" if dialect == "chatglm" else "attention_bias"
    ids = mx.arange(3, 40)[None]
    silent, _ = load_model(make_folder(dialect, edit_config=drop(key)))
    assert mx.array_equal(silent(ids), load_model(make_folder(dialect))[0](ids))


def test_a_head_beside_tied_embeddings_is_redundant(make_folder: FolderMaker) -> None:
    """As `save_pretrained` of older versions leaves it."""
    ids = mx.arange(3, 40)[None]
    folder = make_folder("glm", tied=True, edit_tensors=add("lm_head.weight", 352, 64))
    assert mx.array_equal(
        load_model(folder)[0](ids), load_model(make_folder("glm", tied=True))[0](ids)
    )


@pytest.mark.parametrize("quantize", [None, FOUR_BITS], ids=["plain", "4bit"])
def test_interim_fused_names_are_read(quantize: Any, make_folder: FolderMaker) -> None:
    """Early HF conversions kept q, k and v in one `qkv_proj`."""

    def fuse(tensors: Tensors) -> None:
        for name in list(tensors):
            if ".q_proj." in name:
                parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
                tensors[name.replace("q_proj", "qkv_proj")] = mx.concatenate(parts)

    ids = mx.arange(3, 40)[None]
    apart, _ = load_model(make_folder("glm", quantize=quantize))
    fused, _ = load_model(make_folder("glm", quantize=quantize, edit_tensors=fuse))
    assert mx.array_equal(fused(ids), apart(ids))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_loaded_in_one_thread_used_in_another(dialect: str, make_folder: FolderMaker) -> None:
    folder, loaded = make_folder(dialect, quantize=FOUR_BITS), []

    def load() -> None:
        loaded.append(load_model(folder)[0])
        mx.clear_streams()

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    ids = mx.arange(3, 40)[None]
    assert mx.array_equal(loaded[0](ids), load_model(folder)[0](ids))


def test_loading_keeps_one_copy(make_folder: FolderMaker) -> None:
    """Fusing goes layer by layer: the peak is the model and little more."""
    folder = make_folder("glm4", num_layers=24, hidden_size=128, intermediate_size=256)
    model_bytes = sum(t.stop - t.start for t in Checkpoint.open(folder).tensors.values())
    mx.reset_peak_memory()
    before_bytes = mx.get_active_memory()
    decoder, _ = load_model(folder)
    assert mx.get_peak_memory() - before_bytes < 1.2 * model_bytes
    assert len(decoder.layers) == 24
