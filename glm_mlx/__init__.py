"""GLM-4 on Apple Silicon through MLX: the public names, nothing else."""

from glm_mlx.api import (
    GLM,
    Completion,
    ConversionReport,
    Options,
    Progress,
    Recipe,
    UploadPlan,
    Verification,
    convert,
    export,
    load,
    upload,
    verify,
)
from glm_mlx.config import ModelConfig
from glm_mlx.errors import (
    CheckpointError,
    ClosedError,
    ConfigError,
    ContextLengthError,
    GLMError,
    GLMWarning,
    HubError,
    InputFileError,
    NumericError,
    OptionError,
    ResourceError,
    TemplateError,
    TokenizerError,
)
from glm_mlx.generate.engine import Usage
from glm_mlx.generate.prefix import PromptCache
from glm_mlx.generate.stream import Chunk, Timings
from glm_mlx.model.mlx_lm import mlx_lm_classes
from glm_mlx.text.tools import ToolCall

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Chunk",
    "ClosedError",
    "Completion",
    "ConfigError",
    "ContextLengthError",
    "ConversionReport",
    "GLM",
    "GLMError",
    "GLMWarning",
    "HubError",
    "InputFileError",
    "ModelConfig",
    "NumericError",
    "OptionError",
    "Options",
    "Progress",
    "PromptCache",
    "Recipe",
    "ResourceError",
    "TemplateError",
    "Timings",
    "TokenizerError",
    "ToolCall",
    "UploadPlan",
    "Usage",
    "Verification",
    "__version__",
    "convert",
    "export",
    "load",
    "mlx_lm_classes",
    "upload",
    "verify",
]
