"""`config.json` and `generation_config.json`, in all spellings, as frozen dataclasses, and back."""

from glm_mlx.config.generation import GenerationDefaults, read_generation_config
from glm_mlx.config.model import FAMILIES, ModelConfig, parse_config, read_config
from glm_mlx.config.quantization import MODES, Quantization, QuantSpec
from glm_mlx.config.rope import Yarn
from glm_mlx.config.writing import to_chatglm_config, to_glm_config

__all__ = [
    "FAMILIES",
    "GenerationDefaults",
    "MODES",
    "ModelConfig",
    "QuantSpec",
    "Quantization",
    "Yarn",
    "parse_config",
    "read_config",
    "read_generation_config",
    "to_chatglm_config",
    "to_glm_config",
]
