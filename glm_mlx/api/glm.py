"""The loaded model: it generates, streams and can be closed, from any thread.

Hands checked requests to the model's owner thread. Computes nothing itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from glm_mlx import nano
from glm_mlx.api.reply import AfterHeader, Completion
from glm_mlx.api.request import Options, Prompt, Request, RequestDesk
from glm_mlx.config import ModelConfig, read_config, read_generation_config
from glm_mlx.errors import ClosedError
from glm_mlx.generate.engine import Generation
from glm_mlx.generate.owner import Owner
from glm_mlx.generate.prefix import PromptCache
from glm_mlx.generate.stream import Chunk, Detokenizer, stream_text
from glm_mlx.hub import resolve
from glm_mlx.load import load_steps
from glm_mlx.model.decoder import Decoder
from glm_mlx.text import Tokenizer


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
    folder = nano.FOLDER if path_or_repo is None else resolve(path_or_repo, revision=revision)
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
        defaults = read_generation_config(folder)
        self._desk = RequestDesk(tokenizer, defaults, config.max_position_embeddings)
        self._stop_ids = tokenizer.stop_ids | {*config.eos_token_ids, *defaults.eos_token_ids}
        self._owner = Owner()
        try:
            loading = self._owner.stream(lambda: load_steps(folder, config))
            self._model: Decoder | None = next(loading)
        except BaseException:
            self._owner.close()
            raise

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
        request = self._desk.check(prompt, options)
        chunks = list(self._owner.stream(lambda: self._chunks(request)))
        return Completion.gather(chunks, request, self.tokenizer)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Iterator[Chunk]:
        """Yield the reply as it is made; the last chunk tells how it ended.

        Closing or dropping the iterator cancels the request, in the prompt too. Arguments and
        errors as in `generate`.
        """
        request = self._desk.check(prompt, options)
        return self._owner.stream(lambda: self._chunks(request))

    def astream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncIterator[Chunk]:
        """Yield the reply for ``async for``; cancelling the task cancels the request."""
        request = self._desk.check(prompt, options)
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

    def _chunks(self, request: Request) -> Generator[Chunk | None, None, None]:
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
            chunks = stream_text(
                generation,
                AfterHeader(detokenizer) if request.is_chat else detokenizer,
                stops=request.stops,
                cancel=request.cancel,
                on_prefill=request.on_prefill,
            )
            with closing(chunks):  # so that the cache is trimmed before it is given back
                for chunk in chunks:
                    if lent and chunk:
                        lent.ids += chunk.token_ids
                    yield chunk
