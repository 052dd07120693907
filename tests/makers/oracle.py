"""transformers' own GLM as oracle: the same weights in both implementations, and our error.

Everything runs in fp32 on the CPU. Imports torch, transformers and the package under test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import torch
import transformers
from makers.compare import relative_error
from makers.folders import Shape, make_config, make_weights, to_chatglm, write_tensors
from makers.matrix import Case
from makers.vocabulary import stop_ids

from glm_mlx.load import load_model

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
Model = Any  # a transformers.PreTrainedModel; its annotations do not survive a type checker
_CLASSES: Mapping[str, Any] = {
    "glm": (transformers.GlmConfig, transformers.GlmForCausalLM),
    "glm4": (transformers.Glm4Config, transformers.Glm4ForCausalLM),
}

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def write_case(case: Case, folder: Path, *, seed: int = 0) -> Model:
    """Write the case's model folder and return transformers' model of the same weights.

    `glm` and `glm4` folders are what `save_pretrained` writes; the legacy spelling changes the
    rope keys of its config. A `chatglm` folder is `glm`, renamed and fused. What the caller asks
    for is in the model and not in the folder.
    """
    shape = case.shape
    family = "glm4" if case.dialect == "glm4" else "glm"
    weights = make_weights(shape, sandwich=family == "glm4", seed=seed)
    if case.dialect == "chatglm":
        config = make_config("chatglm", shape)
        fused = to_chatglm(weights, rotary_dim=shape.head_dim // 2)
        write_tensors(folder, {name: mx.array(value) for name, value in fused.items()})
    else:
        _build(family, shape, weights).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
    if case.spelling == "legacy" and case.dialect != "chatglm":
        del config["rope_parameters"]
        rope_keys = ("rope_theta", "rope_scaling", "partial_rotary_factor")
        legacy = make_config(family, shape, spelling="legacy")
        config |= {key: legacy[key] for key in rope_keys}
    (folder / "config.json").write_text(json.dumps(config))
    return _build(family, replace(shape, yarn=case.caller_yarn or shape.yarn), weights)


def _build(family: str, shape: Shape, weights: Mapping[str, npt.NDArray[np.float32]]) -> Model:
    config_class, model_class = _CLASSES[family]
    keys = make_config(family, shape, spelling="parameters")
    del keys["model_type"], keys["architectures"], keys["torch_dtype"]
    model = model_class(config_class(**keys)).eval()
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    model.load_state_dict(state, strict=not shape.tied)
    return model


def make_ids(rows: int, tokens: int, *, seed: int = 0) -> Ids:
    """Return `(rows, tokens)` random ordinary token ids."""
    return np.random.default_rng(seed).integers(3, stop_ids()[0], (rows, tokens))


def their_logits(model: Model, ids: Ids, **arrays: npt.NDArray[Any]) -> Logits:
    """Return transformers' logits `(B, L, V)`; arrays go to its forward by name."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        logits: Logits = model(torch.from_numpy(ids), **tensors).logits.numpy()
    return logits


def their_greedy(model: Model, ids: Ids, *, tokens: int) -> list[int]:
    """Return the ids transformers' `generate` adds, with nothing to stop it."""
    made = model.generate(
        torch.from_numpy(ids),
        attention_mask=torch.ones(ids.shape),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
    )
    added: list[int] = made[0, ids.shape[1] :].tolist()
    return added


def measure(case: Case, folder: Path, *, seed: int = 0) -> float:
    """Write the case's folder, load it in both implementations, return our relative error."""
    model = write_case(case, folder, seed=seed)
    decoder, _ = load_model(folder, rope=case.caller_rope)
    ids = make_ids(1, case.positions, seed=seed)
    return relative_error(decoder(mx.array(ids)), their_logits(model, ids))
