"""Safetensors folders: which files hold the weights, whether they hold together, reading them."""

from glm_mlx.checkpoint.header import TensorInfo
from glm_mlx.checkpoint.reader import Checkpoint

__all__ = ["Checkpoint", "TensorInfo"]
