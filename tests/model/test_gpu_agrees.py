"""What the CPU computes, the GPU computes: the parity ring holds the CPU to transformers, and this
is the bridge to Metal. Runs on Apple hardware only (`make metal`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import pytest

import glm_mlx
from glm_mlx.load import load_model

pytestmark = pytest.mark.metal

# A GPU may multiply fp32 matrices in TF32, which keeps ten bits of the fraction.
NEAR = 5e-3


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.gpu)
    yield
    mx.set_default_device(before)


def on(device: mx.DeviceType, compute: Callable[[], mx.array]) -> mx.array:
    with mx.stream(device):
        result = compute().astype(mx.float32)
        mx.eval(result)
    return result


@pytest.mark.parametrize("dialect", ["chatglm", "glm", "glm4"])
@pytest.mark.parametrize("quantize", [None, {"group_size": 32, "bits": 4}], ids=["fp32", "4bit"])
def test_logits(
    make_folder: Callable[..., Path], dialect: str, quantize: dict[str, int] | None
) -> None:
    model, _ = load_model(make_folder(dialect, quantize=quantize))
    ids = mx.array([[7, 3, 42, 256, 11, 0, 99] * 9])
    expected = on(mx.cpu, lambda: model(ids))
    found = on(mx.gpu, lambda: model(ids))
    assert mx.abs(found - expected).max() <= NEAR * mx.abs(expected).max()


def test_decode_step_after_prefill(make_folder: Callable[..., Path]) -> None:
    """The short-query kernels of decoding are others than those of prefill."""
    model, _ = load_model(make_folder("glm4"))
    ids = mx.array([list(range(1, 65))])
    expected = on(mx.cpu, lambda: model(ids)[:, -1])

    def step() -> mx.array:
        cache = model.make_cache()
        model(ids[:, :-1], cache=cache)
        return model(ids[:, -1:], cache=cache)[:, -1]

    assert mx.abs(on(mx.gpu, step) - expected).max() <= NEAR * mx.abs(expected).max()


def test_greedy_tokens() -> None:
    """Each token the GPU chose is the CPU's best as well, or within rounding of it."""
    with glm_mlx.load() as glm:
        chosen = list(glm.generate("What is 2 + 3?", max_tokens=24, temperature=0).token_ids)
        prompt = glm.tokenizer.encode("What is 2 + 3?")
        logits = on(mx.cpu, lambda: glm.model(mx.array([prompt + chosen])))[0, len(prompt) - 1 : -1]
    best = logits.max(axis=-1)
    taken = mx.take_along_axis(logits, mx.array(chosen)[:, None], axis=-1)[:, 0]
    assert chosen
    assert (best - taken).max() <= NEAR * mx.abs(logits).max()
