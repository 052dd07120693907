"""Text to ids and back, messages to prompts; knows no model."""

from glm_mlx.text.detokenizer import Detokenizer
from glm_mlx.text.tokenizer import Tokenizer

__all__ = ["Detokenizer", "Tokenizer"]
