"""Safetensors folders: which files hold the weights, whether they hold together, reading and
writing them."""

from glm_mlx.checkpoint.header import TensorInfo
from glm_mlx.checkpoint.reader import Checkpoint
from glm_mlx.checkpoint.rows import RowReader, as_bytes, as_mlx, count_non_finite

__all__ = ["Checkpoint", "RowReader", "TensorInfo", "as_bytes", "as_mlx", "count_non_finite"]
