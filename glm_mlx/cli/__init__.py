"""The `glm-mlx` command: options in, text out; every decision is made below."""
