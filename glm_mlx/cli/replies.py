"""Let a model answer, with Ctrl-C, progress and figures where a person wants them.

Shared by the commands that generate text; knows no option and no conversation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from glm_mlx.cli import terminal

if TYPE_CHECKING:
    from glm_mlx.api import GLM, Completion
    from glm_mlx.generate.stream import Chunk


def complete(glm: GLM, prompt: Any, **options: Any) -> Completion:
    """Return a whole reply; Ctrl-C cuts it short, a second one ends the process."""
    with closing(_prefill_progress()) as progress, terminal.interruptible() as cancel:
        return glm.generate(prompt, cancel=cancel, on_prefill=progress, **options)


def stream(glm: GLM, prompt: Any, write: Callable[[Chunk], object], **options: Any) -> Chunk:
    """Hand a reply to `write` as it comes and return its last chunk; Ctrl-C as in `complete`."""
    with closing(_prefill_progress()) as progress, terminal.interruptible() as cancel:
        for chunk in glm.stream(prompt, cancel=cancel, on_prefill=progress, **options):
            write(chunk)
    return chunk


def print_figures(end: Chunk | Completion) -> None:
    """Say on stderr how many tokens went in and out, and how fast; `end` is a last chunk."""
    usage, timings = end.usage, end.timings
    assert usage is not None
    assert timings is not None
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    terminal.say(
        "figures",
        f"prompt {usage.prompt_tokens:,} tokens{cached}, "
        f"{timings.prompt_tokens_per_second:,.1f} tokens/s; "
        f"reply {usage.completion_tokens:,} tokens, "
        f"{timings.decode_tokens_per_second:,.1f} tokens/s",
    )


def _prefill_progress() -> terminal.Progress:
    return terminal.Progress("reading the prompt", "tokens")
