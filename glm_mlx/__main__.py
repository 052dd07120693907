"""`python -m glm_mlx` is `glm-mlx`."""

from glm_mlx.cli import main

if __name__ == "__main__":
    main()
