"""What a user asks for, checked and turned into ids, before anything is queued."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypedDict, cast

from glm_mlx.config import GenerationDefaults
from glm_mlx.errors import ContextLengthError, OptionError
from glm_mlx.generate.engine import PREFILL_STEP_SIZE
from glm_mlx.generate.prefix import PromptCache
from glm_mlx.generate.sampling import Sampling
from glm_mlx.generate.stream import checked_stops
from glm_mlx.text import Tokenizer

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]


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
class Request:
    """A checked request: nothing is left to refuse but its exact length and its logit bias.

    Attributes:
        ids: the prompt.
        is_chat: whether the prompt was a conversation.
        in_thought: whether the prompt itself opened a ``<think>``.
    """

    ids: list[int]
    is_chat: bool
    in_thought: bool
    sampling: Sampling
    stops: tuple[str, ...]
    max_tokens: int | None
    tools: Sequence[Mapping[str, Any]] | None
    prefill_step_size: int
    on_prefill: Callable[[int, int], object] | None
    cancel: threading.Event | None
    cache: PromptCache | None


@dataclass(frozen=True)
class RequestDesk:
    """Turns the arguments of a request into a `Request`, for one model."""

    tokenizer: Tokenizer
    defaults: GenerationDefaults
    context_tokens: int

    def check(self, prompt: Prompt, options: Options) -> Request:
        """Return the request, sampling values not given being the checkpoint's own.

        Raises:
            OptionError: an option is out of range or of a wrong type; `field` names it.
            TypeError: there is no such option.
            TemplateError: the model has no chat template, or it refused the messages.
        """
        for name in options.keys() - Options.__annotations__.keys():
            raise TypeError(
                f"there is no option {name!r}; there are {', '.join(Options.__annotations__)}"
            )
        return self._check(prompt, **options)

    def _check(
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
    ) -> Request:
        _check_types(
            template_options=(template_options, Mapping, "a mapping"),
            on_prefill=(on_prefill, Callable, "a function of two integers"),
            cancel=(cancel, threading.Event, "a threading.Event"),
            cache=(cache, PromptCache, "a cache from new_cache()"),
        )
        defaults = self.defaults
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
        for name in template_options or {}:
            if not isinstance(name, str) or name in ("self", "messages", "tools"):
                raise OptionError(
                    f"template_options holds {name!r}, which is no variable a request can set",
                    field="template_options",
                )
        stops = checked_stops(stop)
        ids, is_chat = self._prompt_ids(prompt, tools, template_options)
        opening = self.tokenizer.decode(ids[-8:]) if is_chat else ""
        return Request(
            ids=ids,
            is_chat=is_chat,
            in_thought=opening.rstrip().endswith("<think>"),
            sampling=sampling,
            stops=stops,
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
            if not prompt:
                raise OptionError("the prompt is empty", field="prompt")
            self._check_length(len(prompt))
            return self.tokenizer.encode(prompt), False
        if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray | memoryview):
            if all(isinstance(item, Integral) and not isinstance(item, bool) for item in prompt):
                return [int(cast(int, item)) for item in prompt], False
            if all(isinstance(item, Mapping) for item in prompt):
                messages = cast(Sequence[Mapping[str, object]], prompt)
                contents = (message.get("content") for message in messages)
                self._check_length(sum(len(text) for text in contents if isinstance(text, str)))
                ids = self.tokenizer.encode_chat(messages, tools=tools, **(template_options or {}))
                return ids, True
        raise OptionError(
            f"the prompt is a {type(prompt).__name__}; it must be a string, a list of messages "
            "or a list of token ids",
            field="prompt",
        )

    def _check_length(self, characters: int) -> None:
        """Refuse what cannot fit however it is cut into tokens, without cutting it."""
        least_tokens = characters // self.tokenizer.longest_token_bytes
        if least_tokens > self.context_tokens:
            raise ContextLengthError(
                f"{characters:,} characters of prompt are at least {least_tokens:,} tokens, which "
                f"exceed the model's context of {self.context_tokens:,}; shorten the prompt",
                field="prompt",
            )


def _check_types(**options: tuple[object, Any, str]) -> None:
    for name, (value, kind, expected) in options.items():
        if value is not None and not isinstance(value, kind):
            raise OptionError(f"{name} is {value!r}; it must be {expected}", field=name)


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
