"""A loaded model as one object: what a user passes in, what comes back, and who does the work."""

from glm_mlx.api.glm import GLM, load
from glm_mlx.api.reply import Completion
from glm_mlx.api.request import Options, Prompt

__all__ = ["Completion", "GLM", "Options", "Prompt", "load"]
