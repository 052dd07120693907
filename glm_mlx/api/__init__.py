"""What a user calls: a loaded model as one object, and the work on whole model folders."""

from glm_mlx.api.convert import UploadPlan, convert, export, upload, verify
from glm_mlx.api.glm import GLM, load
from glm_mlx.api.reply import Completion
from glm_mlx.api.request import Options, Prompt
from glm_mlx.convert.recipes import Recipe
from glm_mlx.convert.report import ConversionReport
from glm_mlx.convert.settings import Progress
from glm_mlx.convert.verify import Verification

__all__ = [
    "Completion",
    "ConversionReport",
    "GLM",
    "Options",
    "Progress",
    "Prompt",
    "Recipe",
    "UploadPlan",
    "Verification",
    "convert",
    "export",
    "load",
    "upload",
    "verify",
]
