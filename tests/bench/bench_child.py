"""One measurement of one engine in a fresh process, printed as one JSON object.

`bench.py` starts this for our engine and for mlx-lm in turn. Both get the same folder, the same
prompt ids and greedy sampling, and both are driven the way their users drive them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.folders import write_folder

WARM_UP_TOKENS = 3
SHORT_TOKENS = 8
PREFIX_TOKENS = 2  # [gMASK]<sop>
PRINTABLE_IDS = 94  # ranks 0..93 of the made vocabulary are the bytes `!`..`~`

# What one engine offers: the model, its cache maker, and (prompt, tokens) -> ids as they come.
Engine = tuple[Any, Callable[[], list[Any]], Callable[[str, int], Iterator[int]]]


def write_model(folder: Path, shape: dict[str, int], bits: int) -> None:
    """Write a random `glm4` folder that both engines load and neither can stop on.

    The head is zero outside the printable bytes, so that greedy decoding meets no stop id and
    each token is one character at once.
    """

    def silence(tensors: dict[str, mx.array]) -> None:
        for name in ("lm_head.weight", "lm_head.scales", "lm_head.biases"):
            if name in tensors:
                tensors[name][PRINTABLE_IDS:] = 0

    quantize = None if bits == 32 else {"group_size": 64, "bits": bits}
    write_folder(folder, "glm4", quantize=quantize, edit_tensors=silence, bias=False, **shape)


def ours(folder: Path) -> Engine:
    import glm_mlx

    glm = glm_mlx.load(folder)

    def stream(prompt: str, tokens: int) -> Iterator[int]:
        for chunk in glm.stream(prompt, max_tokens=tokens, temperature=0):
            yield from chunk.token_ids

    return glm.model, glm.model.make_cache, stream


def theirs(folder: Path) -> Engine:
    import mlx_lm
    from mlx_lm.generate import generation_stream
    from mlx_lm.models.cache import make_prompt_cache

    model, tokenizer = mlx_lm.load(str(folder))

    def stream(prompt: str, tokens: int) -> Iterator[int]:
        ids = tokenizer.encode(prompt)
        for response in mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=tokens):
            yield response.token
        mx.synchronize(generation_stream)  # the step it queued beyond the last token

    return model, lambda: make_prompt_cache(model), stream


ENGINES = {"ours": ours, "mlx_lm": theirs}


def measure_speed(engine: Engine, prompt_tokens: int, tokens: int) -> dict[str, object]:
    """Return CPU and wall seconds a token of prefill and of decode.

    Each is the difference of two whole requests, so that what a request costs by itself cancels,
    and so does the step that an engine queues ahead and may throw away.
    """
    _, _, stream = engine

    def request(letter: str, prompt_tokens: int, tokens: int) -> tuple[float, float, list[int]]:
        cpu, wall = time.process_time(), time.perf_counter()
        ids = list(stream(letter * (prompt_tokens - PREFIX_TOKENS), tokens))
        assert len(ids) == tokens, f"{len(ids)} of {tokens} tokens came"
        return time.process_time() - cpu, time.perf_counter() - wall, ids

    request("a", SHORT_TOKENS, WARM_UP_TOKENS)
    least = request("b", SHORT_TOKENS, 1)
    asked = request("c", prompt_tokens, 1)
    answered = request("d", SHORT_TOKENS, tokens)
    return {
        "prefill_cpu_seconds": (asked[0] - least[0]) / (prompt_tokens - SHORT_TOKENS),
        "decode_cpu_seconds": (answered[0] - least[0]) / (tokens - 1),
        "prefill_wall_seconds": (asked[1] - least[1]) / (prompt_tokens - SHORT_TOKENS),
        "decode_wall_seconds": (answered[1] - least[1]) / (tokens - 1),
        "token_ids": least[2] + asked[2] + answered[2],
    }


def measure_graph(engine: Engine, tokens: int) -> dict[str, object]:
    """Return the calling thread's CPU seconds to build, not run, the graph of one decode step."""
    model, make_cache, _ = engine
    cache = make_cache()
    token = mx.array([[1]])
    spent = []
    for _ in range(WARM_UP_TOKENS + tokens):
        start = time.thread_time()
        token = mx.argmax(model(token, cache=cache)[:, -1:], axis=-1)
        spent.append(time.thread_time() - start)
        mx.eval(token, [layer.state for layer in cache])
    return {"graph_cpu_seconds": statistics.median(spent[WARM_UP_TOKENS:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["write", "speed", "graph"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", choices=list(ENGINES), default="ours")
    parser.add_argument("--shape", type=json.loads, default={})
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args()
    if options.what == "write":
        write_model(options.folder, options.shape, options.bits)
        return
    engine = ENGINES[options.engine](options.folder)
    if options.what == "speed":
        result = measure_speed(engine, options.prompt_tokens, options.tokens)
    else:
        result = measure_graph(engine, options.tokens)
    print(json.dumps(result | {"device": str(mx.default_device())}))


if __name__ == "__main__":
    main()
