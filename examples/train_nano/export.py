"""Write a trained model as a folder that glm-mlx and mlx-lm open: 8-bit weights, configs."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
from tokenizers import Tokenizer
from transformers import Glm4ForCausalLM

from glm_mlx.text.ranks import SPECIAL_TOKENS

BITS, GROUP_SIZE = 8, 64
FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "hidden_act",
    "attention_bias",
    "attention_dropout",
    "rms_norm_eps",
    "max_position_embeddings",
    "tie_word_embeddings",
    "pad_token_id",
    "eos_token_id",
)


def write_folder(folder: Path, model: Glm4ForCausalLM, tokenizer: Tokenizer, template: str) -> None:
    """Write weights, configs, tokenizer and chat template into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(
        str(folder / "model.safetensors"), quantized(model), metadata={"format": "mlx"}
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write(folder / "config.json", config(model))
    _write(
        folder / "generation_config.json",
        {
            "do_sample": False,
            "eos_token_id": model.config.eos_token_id,
            "pad_token_id": model.config.pad_token_id,
        },
    )
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(text)): {"content": text, "special": True}
                for text in SPECIAL_TOKENS
            },
            "additional_special_tokens": list(SPECIAL_TOKENS),
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": model.config.max_position_embeddings,
        },
    )


def quantized(model: Glm4ForCausalLM) -> dict[str, mx.array]:
    """Return the weights under their own names: matrices in 8 bits, norms and biases in fp32."""
    tensors: dict[str, mx.array] = {}
    for name, tensor in model.state_dict().items():
        value = mx.array(tensor.detach().numpy())
        if value.ndim == 1:
            tensors[name] = value
            continue
        stem = name.removesuffix(".weight")
        parts = mx.quantize(value, group_size=GROUP_SIZE, bits=BITS)
        tensors |= dict(zip((name, f"{stem}.scales", f"{stem}.biases"), parts, strict=True))
    return tensors


def config(model: Glm4ForCausalLM) -> dict[str, object]:
    """The config in the spelling of the published files, with the quantization mlx-lm writes."""
    quantization = {"group_size": GROUP_SIZE, "bits": BITS, "mode": "affine"}
    rope = model.config.rope_parameters or {}
    return {
        "architectures": ["Glm4ForCausalLM"],
        **{field: getattr(model.config, field) for field in FIELDS},
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "torch_dtype": "float32",
        "quantization": quantization,
        "quantization_config": quantization,
    }


def _write(path: Path, data: dict[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
