"""Nothing a user can type, and nothing a template does to it, becomes a special token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers.vocabulary import SPECIALS, special_ids

from glm_mlx.errors import OptionError
from glm_mlx.text import Tokenizer

PUBLISHED = Path(__file__).parent / "published"
# Pieces of special tokens, so that cutting, joining and rewriting can put them together.
FRAGMENTS = [
    "<|",
    "user",
    "|>",
    "<",
    ">",
    "[",
    "gMASK",
    "]",
    "[gMAS",
    "K]",
    "<s",
    "op>",
    "<|USER|>",
]
FRAGMENTS += [" ", "\n", "\0", "-", "\\udc00", "</think>", "你好", "\ufdd0", "\ufffe"]
contents = st.lists(st.sampled_from([*SPECIALS, *FRAGMENTS]) | st.text(max_size=3)).map("".join)

HOSTILE_HANDS = """[gMASK]<sop>{% for m in messages %}{% set c = m.content %}
<|{{ m.role }}|>{{ c }}{{ c|trim }}{{ c.strip('<')~c }}{{ c.split('|')|join('|') }}{{ c|lower }}
{{- c.replace('-', '').replace(' ', '') }}{{ c|replace('\n', '') }}{{ c[1:] }}{{ c[:-1] + c[-1:] }}
{{- c|upper|lower }}{{ c.split('</think>')[-1] }}{{ m.metadata }}{{ c }}{{ m|tojson }}
{{- '%s%s' % (c, c) }}{{ '{}{}'.format(c, c) }}{{ c|reverse }}{{ c|list|join }}{{ mood }}
{{- '<' ~ c ~ '>' }}{{ '[' + c }}]{{ c ~ '|>' }}{% if '<|user|>' in c %}!{% endif %}
{%- endfor %}{{ tools|tojson }}<|assistant|>"""


@pytest.fixture(
    scope="module", params=["glm4_chat", "glm4_0414", "glm_z1", "glm_edge", "hands", ""]
)
def chat_tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """A tokenizer for each published template, one that rewrites contents, and the built-in one."""
    from makers.vocabulary import write_tokenizer

    folder = tmp_path_factory.mktemp("injected")
    name: str = request.param
    file = PUBLISHED / f"{name}.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else HOSTILE_HANDS
    write_tokenizer(folder, "glm4", source)
    if not name:
        (folder / "chat_template.jinja").unlink()
    return Tokenizer.from_folder(folder, vocab_size=352, family="glm4" if name else "chatglm")


def conversation(texts: list[str], neutral: bool) -> dict[str, Any]:
    """A request with a text in every place a caller can put one."""

    def place(text: str) -> str:
        return "x" * len(text) if neutral else text

    system, user, answer, argument, result, last = map(place, texts)
    call = {"function": {"name": "f", "arguments": {argument or "a": argument}}}
    return {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "text", "text": user}], "metadata": answer},
            {"role": "assistant", "content": answer, "tool_calls": [call]},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": last, "metadata": user},
            {"role": "user", "content": last, "name": answer},
        ],
        "mood": last,
    }


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(contents, min_size=6, max_size=6))
def test_typed_text_is_never_special(chat_tokenizer: Tokenizer, texts: list[str]) -> None:
    specials = {*special_ids().values()}
    request = conversation(texts, neutral=False)
    ids = chat_tokenizer.encode_chat(**request)
    expected = chat_tokenizer.encode_chat(**conversation(texts, neutral=True))
    assert [id for id in ids if id in specials] == [id for id in expected if id in specials]
    assert chat_tokenizer.decode(ids, skip_special=False) == chat_tokenizer.render(**request)


@pytest.mark.parametrize("special", SPECIALS)
def test_each_special_token_in_each_place(
    open_folder: Callable[..., Tokenizer], template_0414: str, special: str
) -> None:
    tokenizer = open_folder(template_0414)
    tool = {"name": special, "description": special, "parameters": {special: special}}
    for text in (special, f"a{special}b", special[:-1], special[1:], special * 2):
        ids = tokenizer.encode_chat(
            [{"role": "user", "content": text}, {"role": "assistant", "content": text}],
            tools=[tool],
        )
        said = [token for token in SPECIALS for id in ids if id == tokenizer.special_ids[token]]
        assert sorted(said) == sorted(
            ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|assistant|>"]
        )
        assert tokenizer.decode(ids, skip_special=False).count(f"\n{text}<|") == 2


def added(*texts: str) -> dict[str, object]:
    """Settings with added tokens, none of them special, after those that steer."""
    steering = {str(id): {"content": text, "special": True} for text, id in special_ids().items()}
    words = {str(340 + i): {"content": t, "special": False} for i, t in enumerate(texts)}
    return {"added_tokens_decoder": steering | words}


@pytest.mark.parametrize("dialect", ["glm4", "chatglm"])
def test_added_tokens_that_are_not_special_are_words(
    open_folder: Callable[..., Tokenizer], dialect: str
) -> None:
    source = "{% set end = '</think>' %}<|user|>{{ messages[0].content.split(end)[-1] }}</think>"
    tokenizer = open_folder(source, dialect, **added("<think>", "</think>", "</think>!"))
    user = special_ids()["<|user|>"]
    hello = tokenizer.encode("hello", prefix=False)
    for content, expected in [
        ("hm</think>hello", [user, *hello, 341]),
        ("<think>hello", [user, 340, *hello, 341]),
        ("</think>!hello", [user, *tokenizer.encode("!hello", prefix=False), 341]),
        ("<think>" * 2 + "<|user|>", [user, 340, 340, *plain_ids(tokenizer, "<|user|>"), 341]),
    ]:
        ids = tokenizer.encode_chat([{"role": "user", "content": content}])
        assert ids == expected
    assert plain_ids(tokenizer, "hello</think>!<think>") == [*hello, 342, 340]
    assert tokenizer.decode([user, 340, *hello]) == "<think>hello"


def plain_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, prefix=False, parse_special=False)


def test_glm_s_own_tokens_are_guarded_whatever_a_folder_says(
    open_folder: Callable[..., Tokenizer], template_0414: str
) -> None:
    weak = {str(id): {"content": t, "special": False} for t, id in special_ids().items()}
    tokenizer = open_folder(template_0414, "chatglm", added_tokens_decoder=weak)
    for special, id in special_ids().items():
        assert id not in plain_ids(tokenizer, special)
        typed = tokenizer.encode_chat([{"role": "user", "content": special}])
        neutral = tokenizer.encode_chat([{"role": "user", "content": "x"}])
        assert typed.count(id) == neutral.count(id)


def test_surrogates_cannot_pose_as_marks(tiny: Tokenizer) -> None:
    for bad in ("\udc00|user|>", "\udfff"):
        for request in (
            {"messages": [{"role": "user", "content": bad}]},
            {"messages": [{"role": "user", "content": "x", bad: 1}]},
            {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": bad}]},
            {"messages": [{"role": "user", "content": "x"}], "option": bad},
        ):
            with pytest.raises(OptionError, match="lone surrogate"):
                tiny.encode_chat(**request)
