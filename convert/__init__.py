"""From a checkpoint in any layout to quantized MLX weights and back, a block of rows at a time."""
