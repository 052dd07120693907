"""One loaded model as one object: it generates, streams and can be closed, from any thread.

Turns what a user passes into ids and options, and hands them to the model's owner thread. Computes
nothing itself.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack, cast

from glm_mlx.config import ModelConfig, read_config, read_generation_config
from glm_mlx.errors import ClosedError, OptionError
from glm_mlx.generate.engine import PREFILL_STEP_SIZE, Generation, Usage
from glm_mlx.generate.owner import Owner
from glm_mlx.generate.prefix import PromptCache
from glm_mlx.generate.sampling import Sampling
from glm_mlx.generate.stream import Chunk, Detokenizer, Timings, checked_stops, stream_text
from glm_mlx.hub import resolve
from glm_mlx.load import load_weights
from glm_mlx.model.decoder import Decoder
from glm_mlx.text.reasoning import split_reasoning
from glm_mlx.text.tokenizer import Tokenizer
from glm_mlx.text.tools import ToolCall, parse_tool_calls

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]

_NANO = Path(__file__).parent / "nano"


class Options(TypedDict, total=False):
    """What a request may ask for; sampling values not given are the checkpoint's own.

    Those come from ``generation_config.json``; without one, temperature and top-p are 0.8, as in
    the 2024 ``chat()``.

    Attributes:
        max_tokens: longest reply, 512 if not given; None fills the context.
        temperature: 0 takes the likeliest token.
        top_p, top_k, min_p: cut the unlikely tokens off, in this order after top-k.
        repetition_penalty: as in transformers, over prompt and reply; 1 is off.
        presence_penalty, frequency_penalty: as in OpenAI's API, over the reply; 0 is off.
        logit_bias: token id to what is added to its logit.
        stop: a string or up to 16 that end the reply, themselves left out.
        seed: the same seed gives the same reply; None draws one, which the reply reports.
        tools: function schemas, offered to the model through the chat template.
        template_options: further variables of the chat template.
        prefill_step_size: prompt tokens computed between two chances to cancel.
        on_prefill: told ``(done_tokens, total_tokens)``, in the owner thread.
        cancel: once set, the reply ends with what it has.
        cache: from `GLM.new_cache`; keeps a conversation's past from being computed each turn.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    seed: int | None
    tools: Sequence[Mapping[str, Any]] | None
    template_options: Mapping[str, Any] | None
    prefill_step_size: int
    on_prefill: Callable[[int, int], object] | None
    cancel: threading.Event | None
    cache: PromptCache | None


@dataclass(frozen=True)
class Completion:
    """A whole reply.

    Attributes:
        text: all of it, exactly the stream's pieces joined.
        token_ids: its ids, the one that ended it left out.
        finish_reason: "stop", "length", "tool_calls" or "cancelled".
        reasoning: the thought before a ``</think>``; None if there was none.
        tool_calls: the functions the model wants called, if it stopped to wait for them.
        seed: gives the same reply again.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    timings: Timings
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    seed: int


@dataclass(frozen=True)
class _Request:
    """A checked request: nothing left to refuse but its length and its logit bias."""

    ids: list[int]
    is_chat: bool
    in_thought: bool  # the prompt itself opened a <think>
    sampling: Sampling
    stops: tuple[str, ...]
    max_tokens: int | None
    tools: Sequence[Mapping[str, Any]] | None
    prefill_step_size: int
    on_prefill: Callable[[int, int], object] | None
    cancel: threading.Event | None
    cache: PromptCache | None


def load(
    path_or_repo: str | Path | None = None,
    *,
    revision: str | None = None,
    rope: Mapping[str, object] | None = None,
    trust_config: bool = False,
) -> GLM:
    """Load a model from a folder or the Hugging Face hub.

    Args:
        path_or_repo: a folder, or a hub id such as ``THUDM/GLM-4-9B-0414``; none loads the nano
            model inside this package.
        revision: branch, tag or commit of a hub id.
        rope: RoPE settings laid over the config's, in the spelling of ``rope_parameters``:
            ``{"rope_theta": 5e6}``, ``{"rope_type": "yarn", "factor": 4}``.
        trust_config: take doubtful config values at their word, without a warning.

    Raises:
        InputFileError: a file of the model is missing, damaged or of an unsupported kind.
        HubError: the model could not be fetched.
    """
    folder = _NANO if path_or_repo is None else resolve(path_or_repo, revision=revision)
    config = read_config(folder, rope=rope, trust_config=trust_config)
    tokenizer = Tokenizer.from_folder(folder, vocab_size=config.vocab_size, family=config.family)
    return GLM(folder, config, tokenizer)


class GLM:
    """A loaded model; make one with `load`.

    Every method may be called from any thread: one thread that belongs to the model does its
    work, and steps the replies under way in turn. Use it as a context manager, or `close` it, to
    give the memory back at a known time.

    Attributes:
        folder: where it was loaded from.
        tokenizer: text to ids and back, messages to prompts.
    """

    def __init__(self, folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self._defaults = read_generation_config(folder)
        self._owner = Owner()
        try:
            self._model: Decoder | None = self._owner.run(lambda: load_weights(folder, config))
        except BaseException:
            self._owner.close()
            raise
        self._stop_ids = tokenizer.stop_ids | {*config.eos_token_ids, *self._defaults.eos_token_ids}

    @property
    def model(self) -> Decoder:
        """The decoder: ``model(ids, cache=None)``, ``(B, L)`` ids to ``(B, L, V)`` logits.

        It computes in the thread that calls it, beside whatever the owner thread is doing.
        """
        if self._model is None:
            raise ClosedError("the model is closed; load it again")
        return self._model

    @property
    def config(self) -> ModelConfig:
        """What the model is."""
        return self.model.config

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """Return the reply to ``prompt``.

        Args:
            prompt: a string is continued as it is, behind the model's prefix, and special tokens
                written in it count as such; a list of messages is a conversation, rendered by the
                chat template, in which they do not; a list of token ids is taken as it is.
            options: see `Options`.

        Raises:
            OptionError: an option is out of range, or the prompt empty or too long.
            TemplateError: the model has no chat template, or it refused the messages.
        """
        request = self._request(prompt, **options)
        chunks = list(self._owner.stream(lambda: self._chunks(request)))
        return self._completion(request, chunks)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[Chunk]:
        """Yield the reply as it is made; the last chunk tells how it ended.

        Closing or dropping the iterator cancels the request, in the prompt too. Arguments and
        errors as in `generate`.
        """
        request = self._request(prompt, **options)
        return self._owner.stream(lambda: self._chunks(request))

    def astream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncIterator[Chunk]:
        """Yield the reply for ``async for``; cancelling the task cancels the request."""
        request = self._request(prompt, **options)
        return self._owner.astream(lambda: self._chunks(request))

    def new_cache(self) -> PromptCache:
        """An empty cache for one conversation, to pass as ``cache`` with each of its requests."""
        return PromptCache(self.model)

    def close(self) -> None:
        """End what is running and give the memory back; any later call raises `ClosedError`."""
        self._model = None
        self._owner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _request(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = 512,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        prefill_step_size: int = PREFILL_STEP_SIZE,
        on_prefill: Callable[[int, int], object] | None = None,
        cancel: threading.Event | None = None,
        cache: PromptCache | None = None,
    ) -> _Request:
        """Check the request in the caller's thread, before anything is queued."""
        defaults = self._defaults
        sampling = Sampling(
            **_given(
                temperature=_first(temperature, defaults.temperature),
                top_p=_first(top_p, defaults.top_p),
                top_k=_first(top_k, defaults.top_k),
                min_p=_first(min_p, defaults.min_p),
                repetition_penalty=_first(repetition_penalty, defaults.repetition_penalty),
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                logit_bias=logit_bias,
                seed=seed,
            )
        )
        ids, is_chat = self._prompt_ids(prompt, tools, template_options)
        return _Request(
            ids=ids,
            is_chat=is_chat,
            in_thought=is_chat and self.tokenizer.decode(ids[-8:]).rstrip().endswith("<think>"),
            sampling=sampling,
            stops=checked_stops(stop),
            max_tokens=max_tokens,
            tools=tools,
            prefill_step_size=prefill_step_size,
            on_prefill=on_prefill,
            cancel=cancel,
            cache=cache,
        )

    def _prompt_ids(
        self,
        prompt: Prompt,
        tools: Sequence[Mapping[str, Any]] | None,
        template_options: Mapping[str, Any] | None,
    ) -> tuple[list[int], bool]:
        """The ids to run, and whether they are a conversation's."""
        if isinstance(prompt, str):
            if tools or template_options:
                raise OptionError(
                    "tools and template_options need a list of messages as prompt", field="prompt"
                )
            return self.tokenizer.encode(prompt), False
        if isinstance(prompt, Sequence) and all(type(item) is int for item in prompt):
            return cast(list[int], list(prompt)), False
        if isinstance(prompt, Sequence) and all(isinstance(item, Mapping) for item in prompt):
            messages = cast(Sequence[Mapping[str, object]], prompt)
            ids = self.tokenizer.encode_chat(messages, tools=tools, **(template_options or {}))
            return ids, True
        raise OptionError(
            f"the prompt is a {type(prompt).__name__}; it must be a string, a list of messages "
            "or a list of token ids",
            field="prompt",
        )

    def _chunks(self, request: _Request) -> Generator[Chunk | None, None, None]:
        """Make the reply; runs in the owner's thread."""
        model = self.model
        loan = nullcontext() if request.cache is None else request.cache.lend(model, request.ids)
        detokenizer: Detokenizer = self.tokenizer.detokenizer()
        with loan as lent:
            generation = Generation(
                model,
                request.ids,
                request.sampling,
                stop_ids=self._stop_ids,
                max_tokens=request.max_tokens,
                vocab_size=self.tokenizer.vocab_size,
                cache=lent.layers if lent else None,
                prefill_step_size=request.prefill_step_size,
            )
            for chunk in stream_text(
                generation,
                _AfterHeader(detokenizer) if request.is_chat else detokenizer,
                stops=request.stops,
                cancel=request.cancel,
                on_prefill=request.on_prefill,
            ):
                if lent and chunk:
                    lent.ids += chunk.token_ids
                yield chunk

    def _completion(self, request: _Request, chunks: Sequence[Chunk]) -> Completion:
        last = chunks[-1]
        assert last.finish_reason is not None and last.usage is not None
        assert last.timings is not None and last.seed is not None
        text = "".join(chunk.text for chunk in chunks)
        token_ids = tuple(token for chunk in chunks for token in chunk.token_ids)
        reasoning: str | None = None
        calls: tuple[ToolCall, ...] = ()
        if request.is_chat:
            reasoning, _ = split_reasoning(text, starts_inside=request.in_thought)
        # GLM ends its turn with the role it expects next: an observation answers a call.
        if request.is_chat and last.stop_id == self.tokenizer.special_ids.get("<|observation|>"):
            # Several calls stand behind one <|assistant|> each, which `text` does not show.
            said = self.tokenizer.decode(token_ids, skip_special=False)
            _, answer = split_reasoning(said, starts_inside=request.in_thought)
            _, calls = parse_tool_calls(answer, request.tools)
        return Completion(
            text=text,
            token_ids=token_ids,
            finish_reason="tool_calls" if calls else last.finish_reason,
            usage=last.usage,
            timings=last.timings,
            reasoning=reasoning,
            tool_calls=calls,
            seed=last.seed,
        )


class _AfterHeader:
    """A detokenizer that drops the newline with which GLM ends the role header of its own turn.

    The template leaves that newline to the model; nobody means it as part of the reply.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._at_start = True

    def push(self, id: int, /) -> str:
        return self._trimmed(self._detokenizer.push(id))

    def finish(self) -> str:
        return self._trimmed(self._detokenizer.finish())

    def _trimmed(self, text: str) -> str:
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix("\n")
        return text


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
