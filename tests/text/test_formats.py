"""Golden prompts: each chat format of the family, published and built in, to the character."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glm_mlx.errors import GLMWarning, OptionError, TemplateError
from glm_mlx.text import Tokenizer

PUBLISHED = Path(__file__).parent / "published"
IDENTITY = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。"
)
CLOSING = "在调用上述函数时，请使用 Json 格式表示调用的参数。"

Open = Callable[..., Tokenizer]


def published(name: str) -> str:
    return (PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8")


def function(name: str) -> dict[str, Any]:
    return {"name": name, "description": "查询天气", "parameters": {"type": "object"}}


def schema(name: str) -> str:
    return f"## {name}\n\n{json.dumps(function(name), ensure_ascii=False, indent=4)}\n{CLOSING}"


TOOLS = [{"type": "function", "function": function("f1")}, function("f2")]
USER = {"role": "user", "content": "U1"}
SYSTEM = {"role": "system", "content": "SYS"}
OPENAI = [
    SYSTEM,
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f1", "arguments": '{"a": "x"}'}},
            {"id": "2", "type": "function", "function": {"name": "f2", "arguments": {}}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "O1"},
    {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "O2"}]},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
]


@pytest.mark.parametrize("dialect", ["glm", "chatglm"])
def test_2024_published_template(open_folder: Open, dialect: str) -> None:
    tokenizer = open_folder(published("glm4_chat"), dialect)
    turns = (
        '<|user|>\nU1<|assistant|>f1\n{"a": "x"}<|assistant|>f2\n{}'
        "<|observation|>\nO1<|observation|>\nO2<|assistant|>\nA1<|user|>\nU2<|assistant|>"
    )
    assert tokenizer.render(OPENAI) == "[gMASK]<sop><|system|>\nSYS" + turns
    tools = f"<|system|>\n{IDENTITY}\n\n# 可用工具\n{schema('f1')}\n{schema('f2')}"
    assert tokenizer.render(OPENAI, tools=TOOLS) == f"[gMASK]<sop>{tools}<|system|>\nSYS{turns}"
    assert tokenizer.render([USER], tools=TOOLS) == (
        f"[gMASK]<sop>{tools}<|user|>\nU1<|assistant|>"
    )
    assert tokenizer.render([USER], add_generation_prompt=False) == "[gMASK]<sop><|user|>\nU1"
    assert tokenizer.render([{"role": "user", "content": ""}]) == "[gMASK]<sop><|assistant|>"


def test_2024_as_python_builds_it(open_folder: Open) -> None:
    tokenizer = open_folder(None, "chatglm")
    assert tokenizer.has_chat_template
    tools = f"<|system|>\n{IDENTITY}\n\n# 可用工具\n\n{schema('f1')}\n\n{schema('f2')}"
    assert tokenizer.render([USER], tools=TOOLS) == (
        f"[gMASK]<sop>{tools}<|user|>\nU1<|assistant|>"
    )
    assert tokenizer.render([SYSTEM, USER], tools=TOOLS) == (
        f"[gMASK]<sop>{tools}<|system|>\nSYS<|user|>\nU1<|assistant|>"
    )
    quoted = {"role": "observation", "metadata": "browser_result", "content": "O"}
    assert tokenizer.render([quoted]) == "[gMASK]<sop><|observation|>browser_result\nO<|assistant|>"
    built_in = tokenizer.render([USER], tools=[{"type": "python"}, {"type": "cogview"}])
    assert "# 可用工具\n\n## python\n\n当你向 `python` 发送" in built_in
    assert "这些在线内容的访问将不会成功。\n\n## cogview\n\n如果用户的请求" in built_in


def test_header_and_content_are_tokenized_apart_as_python_does(open_folder: Open) -> None:
    built = open_folder(None, "chatglm")
    newline, both = built.encode("\n", prefix=False), built.encode("\n\n", prefix=False)
    assert len(both) == 1
    chat = [{"role": "user", "content": "\nhello"}]
    hello = built.encode("\nhello", prefix=False)
    user, assistant = built.special_ids["<|user|>"], built.special_ids["<|assistant|>"]
    assert built.encode_chat(chat)[2:] == [user, *newline, *hello, assistant]
    jinja = open_folder(published("glm4_chat"), "chatglm")
    joint = jinja.encode("\n\nhello", prefix=False)
    assert jinja.encode_chat(chat)[2:] == [user, *joint, assistant]
    assert jinja.render(chat) == built.render(chat)


@pytest.mark.parametrize("source", ["published", "ours"])
def test_0414(open_folder: Open, template_0414: str, source: str) -> None:
    tokenizer = open_folder(published("glm4_0414") if source == "published" else template_0414)
    turns = (
        '<|user|>\nU1<|assistant|>f1 \n{"a": "x"}<|assistant|>f2 \n{}<|observation|>\nO1'
        "<|observation|>\nO2<|assistant|>\nA1<|user|>\nU2<|assistant|>"
    )
    assert tokenizer.render(OPENAI) == f"[gMASK]<sop><|system|>\nSYS{turns}"
    assert tokenizer.render([*OPENAI[1:], SYSTEM]) == f"[gMASK]<sop><|system|>\nSYS{turns}"
    tools = f"<|system|>\n# 可用工具\n\n{schema('f1')}\n{schema('f2')}"
    assert tokenizer.render(OPENAI, tools=TOOLS) == f"[gMASK]<sop>{tools}<|system|>\nSYS{turns}"
    in_message = [{**SYSTEM, "tools": TOOLS}, *OPENAI[1:]]
    assert tokenizer.render(in_message) == tokenizer.render(OPENAI, tools=TOOLS)


def test_z1(open_folder: Open) -> None:
    tokenizer = open_folder(published("glm_z1"))
    thought = {"role": "assistant", "content": "<think>hm\n</think>\n\nA1"}
    identity = IDENTITY.replace("智谱AI", "智谱 AI 公司")
    assert tokenizer.render([USER, thought, USER], tools=TOOLS) == (
        f"[gMASK]<sop><|system|>\n{identity}\n\n# 可用工具\n\n{schema('f1')}\n{schema('f2')}"
        "<|user|>\nU1<|assistant|>\nA1<|user|>\nU1<|assistant|>\n<think>"
    )


@pytest.mark.filterwarnings("ignore:.*a base model")  # until the prefix is gone
@pytest.mark.parametrize("source", ["published", "ours"])
def test_glm_edge(open_folder: Open, tmp_path: Path, source: str) -> None:
    open_folder(published("glm_edge") if source == "published" else None, "glm")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / name).read_text(encoding="utf-8").replace("[gMASK]", "[gm]")
        (tmp_path / name).write_text(text, encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path, vocab_size=352, family="glm")
    assert tokenizer.encode("hello") == tokenizer.encode("hello", prefix=False)
    prompt = tokenizer.render([SYSTEM, USER, {"role": "assistant", "content": "A"}])
    assert prompt == "<|system|>\nSYS<|user|>\nU1<|assistant|>\nA<|assistant|>\n"
    with pytest.raises(TemplateError, match="takes no tools"):
        tokenizer.render([USER], tools=TOOLS)


@pytest.mark.parametrize("dialect", ["glm", "glm4"])
def test_base_models_complete_only(open_folder: Open, dialect: str) -> None:
    with pytest.warns(GLMWarning, match="no chat template: a base model"):
        tokenizer = open_folder(None, dialect)
    assert not tokenizer.has_chat_template
    assert tokenizer.encode("hello")
    for call in (tokenizer.render, tokenizer.encode_chat):
        with pytest.raises(TemplateError, match="give the prompt as one string"):
            call([USER])


def test_named_templates_and_template_variables(open_folder: Open) -> None:
    named = [
        {"name": "default", "template": "{{ eos_token }}{{ mood }}{{ messages[0].content }}"},
        {"name": "tool_use", "template": "{{ tools|length }} tools"},
    ]
    tokenizer = open_folder(None, chat_template=named)
    assert tokenizer.render([USER], mood="gay ") == "<|endoftext|>gay U1"
    assert tokenizer.encode_chat([USER])[0] == tokenizer.special_ids["<|endoftext|>"]
    assert tokenizer.render([USER], tools=TOOLS) == "2 tools"
    lonely = open_folder(None, chat_template=named[1:])
    with pytest.raises(TemplateError, match='no template named "default", only tool_use'):
        lonely.render([USER])


def test_the_folder_file_wins_over_the_config(open_folder: Open) -> None:
    assert open_folder("from the file", chat_template="from the config").render([USER]) == (
        "from the file"
    )


def test_openai_tool_turns_stay_for_templates_that_know_them(open_folder: Open) -> None:
    tokenizer = open_folder(
        "{% for m in messages %}{{ m.role }}{% for c in m.tool_calls %}:{{ c.function.name }}"
        "{% endfor %} {% endfor %}"
    )
    assert tokenizer.render(OPENAI) == "system user assistant:f1:f2 tool tool assistant user "


def test_text_beside_tool_calls_comes_first(open_folder: Open, template_0414: str) -> None:
    call = {**OPENAI[2], "content": "Let me look."}
    assert open_folder(template_0414).render([call], add_generation_prompt=False) == (
        '[gMASK]<sop><|assistant|>\nLet me look.<|assistant|>f1 \n{"a": "x"}<|assistant|>f2 \n{}'
    )


def test_tools_given_twice_are_refused(tiny: Tokenizer) -> None:
    with pytest.raises(OptionError, match="given twice"):
        tiny.render([{**SYSTEM, "tools": TOOLS}], tools=TOOLS)
