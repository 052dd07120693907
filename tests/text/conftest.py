"""Vocabularies for the text room: a tiny one, and GLM-4's own size with its known tokens."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

import pytest
from makers.vocabulary import byte_characters, write_tokenizer

from glm_mlx.text import Tokenizer

RANKS = 151_329
# What GLM-4's ids stand for, as far as published prompts tell (chatglm.cpp, Pipeline.ChatGLM4).
KNOWN = {
    "你": 98406,
    "你好": 109377,
    "，": 3837,
    "！": 6313,
    "？": 11314,
    "很高兴": 118295,
    "见到": 103810,
    "有什么": 101665,
    "可以帮助": 110368,
    "你的": 99444,
    "吗": 99212,
    "晚上": 101160,
    "睡不着": 120410,
    "应该": 99379,
    "怎么办": 103298,
}


def write_ranks(file: Path, tokens: Iterable[bytes]) -> None:
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    file.write_bytes(b"".join(lines))


@pytest.fixture(scope="session")
def glm4_sized(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A chatglm tokenizer of GLM-4's real size in which the tokens of `KNOWN` have their real ids.

    Their unfinished parts get low ids, filler that is not UTF-8 gets the others.
    """
    known = {text.encode(): rank for text, rank in KNOWN.items()} | {b"\xf0\x9f": 9281}
    parts = {token[:i] for token in known for i in range(2, len(token)) if token[:i] not in known}
    parts |= {char.encode()[:i] for text in KNOWN for char in text for i in (2, 3)} - known.keys()
    tokens = dict(enumerate(bytes([byte]) for byte in byte_characters()))
    tokens |= dict(enumerate(sorted(parts, key=len), start=len(tokens)))
    tokens |= {rank: token for token, rank in known.items()}
    filler = (b"\xff\xfe" + i.to_bytes(3) for i in range(RANKS))
    folder = tmp_path_factory.mktemp("glm4_sized")
    write_ranks(
        folder / "tokenizer.model",
        (tokens[rank] if rank in tokens else next(filler) for rank in range(RANKS)),
    )
    return Tokenizer.from_folder(folder, vocab_size=151_552, family="chatglm")


@pytest.fixture
def open_folder(tmp_path: Path) -> Callable[..., Tokenizer]:
    """Return `open_folder(template, dialect="glm4", **settings)`: a tiny tokenizer around one.

    `template=None` writes none; `settings` replace keys of tokenizer_config.json.
    """

    def build(template: str | None, dialect: str = "glm4", **settings: object) -> Tokenizer:
        write_tokenizer(tmp_path, dialect, template or "")
        config = tmp_path / "tokenizer_config.json"
        data = json.loads(config.read_text(encoding="utf-8"))
        if template is None:
            data.pop("chat_template", None)
            (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
        config.write_text(json.dumps(data | settings, ensure_ascii=False), encoding="utf-8")
        return Tokenizer.from_folder(tmp_path, vocab_size=352, family=dialect)

    return build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The tiny vocabulary of the made folders, with the 0414 chat format."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tokenizer(folder, "glm4", glm4_0414())
    return Tokenizer.from_folder(folder, vocab_size=352, family="glm4")


def glm4_0414() -> str:
    file = resources.files("glm_mlx.text") / "templates" / "glm4_0414.jinja"
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def template_0414() -> str:
    """The 0414 chat format this package ships."""
    return glm4_0414()
