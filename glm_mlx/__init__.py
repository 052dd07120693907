"""GLM-4 on Apple Silicon through MLX: the public names, nothing else."""
