"""Text and conversations to ids and back, for one model folder.

Joins the vocabulary, the special tokens and the chat template, each with its rules in its own
file. Plain text and special tokens take separate ways to ids, so no text becomes a special token
unless the caller says so. Added tokens that steer nothing are words like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from glm_mlx.errors import GLMWarning, TemplateError, TokenizerError
from glm_mlx.jsonfile import read_json_object
from glm_mlx.modelfile import find_file
from glm_mlx.text.bytelevel import to_bytes
from glm_mlx.text.detokenizer import Detokenizer
from glm_mlx.text.marks import Marks, any_of
from glm_mlx.text.messages import check_text
from glm_mlx.text.template import ChatTemplate, find_sources
from glm_mlx.text.vocabulary import Vocabulary, check_size, read_vocabulary

STOP_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")
"""Each of them ends a completion, whatever a config lists."""
PREFIX_TOKENS = ("[gMASK]", "<sop>")
"""They open every text, in vocabularies that have both."""


class Tokenizer:
    """The tokenizer of one model; any thread may use it.

    Args:
        vocabulary: plain text to ids, and the added tokens.
        template: the chat format; None for base models.
        folder: named in errors.

    Attributes:
        special_ids: text of every added token -> its id.
        stop_ids: ids that end a completion.
        vocab_size: the highest id plus one; a model's rows from there on are padding, which a
            sampler has to mask.
        longest_token_bytes: no token covers more of a text.
    """

    def __init__(
        self, vocabulary: Vocabulary, template: ChatTemplate | None, *, folder: object
    ) -> None:
        self._bpe = vocabulary.bpe
        self._template = template
        self._folder = folder
        self._added = {token.id: token for token in vocabulary.added}
        self.vocab_size = vocabulary.size
        self.longest_token_bytes = vocabulary.longest_token_bytes
        ids = {token.text: token.id for token in vocabulary.added}
        self.special_ids: Mapping[str, int] = MappingProxyType(ids)
        self.stop_ids = frozenset(ids[text] for text in STOP_TOKENS if text in ids)
        self._prefix = [ids[text] for text in PREFIX_TOKENS if ids.keys() >= {*PREFIX_TOKENS}]
        steering = vocabulary.added_texts(steering=True)
        self._marks = Marks(steering)
        self._specials = any_of(steering)
        self._words = any_of(vocabulary.added_texts(steering=False))

    @classmethod
    def from_folder(cls, folder: Path, *, vocab_size: int, family: str) -> Tokenizer:
        """Read the tokenizer of a model folder; runs no code from it.

        Args:
            folder: holds tokenizer.json or tokenizer.model, and maybe a chat template.
            vocab_size: rows of the model's embedding.
            family: decides which chat format stands in for a missing one.

        Raises:
            TokenizerError: the files are missing, damaged, or of another model.
            TemplateError: a chat template that is not text; what is wrong inside shows when used.
        """
        config = find_file(folder, "tokenizer_config.json", error=TokenizerError)
        settings = read_json_object(config, error=TokenizerError) if config else {}
        vocabulary = read_vocabulary(folder, settings)
        check_size(vocabulary.size, vocab_size, folder)
        specials = [token.text for token in vocabulary.added]
        sources = find_sources(folder, settings, family=family, specials=specials)
        if not sources:
            warnings.warn(
                f"{folder} has no chat template: a base model, for completion only",
                GLMWarning,
                stacklevel=2,
            )
            return cls(vocabulary, None, folder=folder)
        marks = Marks(vocabulary.added_texts(steering=True))
        template = ChatTemplate(sources, marks, _token_variables(settings))
        return cls(vocabulary, template, folder=folder)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render` and `encode_chat` work."""
        return self._template is not None

    def encode(self, text: str, *, prefix: bool = True, parse_special: bool = True) -> list[int]:
        """Return the ids of a text.

        Args:
            text: any text, of any length.
            prefix: put `[gMASK]<sop>` first, unless the text brings it or the model has none.
            parse_special: read `<|user|>` and its like as special tokens, not as plain text.

        Raises:
            OptionError: `text` is not a string, or holds a lone surrogate.
        """
        check_text(text, "text")
        ids = self._encode_pieces(self._specials.split(text) if parse_special else [text])
        if prefix and ids[: len(self._prefix)] != self._prefix:
            ids = self._prefix + ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of some ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: padding rows among them have no text.
            skip_special: leave special tokens out.
        """
        data = b"".join(self._bytes_of(id, skip_special=skip_special) for id in ids)
        return data.decode("utf-8", "replace")

    def detokenizer(self) -> Detokenizer:
        """Return a fresh piecewise `decode`."""
        return Detokenizer(partial(self._bytes_of, skip_special=True))

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **template_options: object,
    ) -> str:
        """Return the exact prompt text of a conversation.

        Args:
            messages: `role` and `content` each, in GLM's or in OpenAI's form.
            tools: functions the model may call, in OpenAI's form.
            add_generation_prompt: end with the opening of the assistant's turn.
            template_options: variables for the template.

        Raises:
            OptionError: a message, a tool or an option is malformed.
            TemplateError: there is no chat template, or it fails.
        """
        return self._marks.unmark(
            self._render(messages, tools, add_generation_prompt, template_options)
        )

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **template_options: object,
    ) -> list[int]:
        """Return the ids of `render`'s text, special tokens only where the template put them.

        Arguments and errors are those of `render`.
        """
        text = self._render(messages, tools, add_generation_prompt, template_options)
        return self._encode_pieces(self._marks.split(text))

    def _render(
        self,
        messages: object,
        tools: object,
        add_generation_prompt: bool,
        options: Mapping[str, object],
    ) -> str:
        if self._template is None:
            raise TemplateError(
                "has no chat template: a base model, for completion only; "
                "give the prompt as one string",
                file=self._folder,
            )
        return self._template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, options=options
        )

    def _encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Encode plain text at even places, special tokens (or nothing) at odd ones."""
        ids: list[int] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                ids += [self.special_ids[piece]] if piece else []
            else:
                ids += self._encode_plain(piece)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for place, piece in enumerate(self._words.split(text)):
            if place % 2:
                ids.append(self.special_ids[piece])
            elif piece:
                ids += self._bpe.encode(piece, add_special_tokens=False).ids
        return ids

    def _bytes_of(self, id: int, *, skip_special: bool) -> bytes:
        if (added := self._added.get(id)) is not None:
            return b"" if added.special and skip_special else added.text.encode()
        token = self._bpe.id_to_token(id) if 0 <= id < self.vocab_size else None
        return b"" if token is None else to_bytes(token)


def _token_variables(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the special tokens a template may name, such as `eos_token`."""
    variables: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        match settings.get(name):
            case str(text) | {"content": str(text)}:
                variables[name] = text
    return variables
