"""How far two sets of logits are apart."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Logits = mx.array | npt.NDArray[np.float32]


def relative_error(result: Logits, expected: Logits) -> float:
    """Return max|result - expected| / max|expected|; NaN anywhere gives NaN."""
    ours, theirs = np.array(result), np.array(expected)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
