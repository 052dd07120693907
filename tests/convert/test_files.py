"""The small files of a converted folder: same config, same ids, same chat, in every layout."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from makers.folders import DIALECTS, FolderMaker
from makers.vocabulary import stop_ids

from glm_mlx.config import ModelConfig, read_config, read_generation_config
from glm_mlx.convert.files import model_files
from glm_mlx.errors import CheckpointError, GLMError, GLMWarning, OptionError, TokenizerError
from glm_mlx.text import Tokenizer

YARN = {"factor": 4.0, "original_max_position_embeddings": 2048}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "\n hello <|user|> 你好"},
    {"role": "assistant", "content": "123 the weather 👋"},
    {"role": "user", "content": "[gMASK]<sop>"},
]
TOOL = {"name": "天气", "description": "the weather", "parameters": {"type": "object"}}
PIECES = (
    *(" ", "\n", "\n\n", "\t", "'s", "'LL", "the", " the", "hello", "in", "er", "12", "1234567"),
    *("你好", "天气", "👋", "😀", "é", "ß", "<|user|>", "[gMASK]", "<sop>", "<|", "!?", "\x00"),
)


def strings(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=rng.randint(0, 12))) for _ in range(count)]


def files_of(folder: Path, layout: str, *, dtype: str = "float32") -> dict[str, bytes]:
    config = read_config(folder, trust_config=True)
    return model_files(folder, config, layout=layout, quantization=None, dtype=dtype)


def written(folder: Path, layout: str, destination: Path) -> tuple[ModelConfig, Tokenizer]:
    """Convert the small files of `folder` into `destination` and read them there."""
    destination.mkdir()
    for name, data in files_of(folder, layout).items():
        (destination / name).write_bytes(data)
    return opened(destination)


def opened(folder: Path) -> tuple[ModelConfig, Tokenizer]:
    config = read_config(folder, trust_config=True)
    return config, Tokenizer.from_folder(folder, vocab_size=config.vocab_size, family=config.family)


def edit_settings(folder: Path, **settings: object) -> None:
    """Set keys of tokenizer_config.json; None removes one."""
    file = folder / "tokenizer_config.json"
    data = json.loads(file.read_bytes()) | settings
    file.write_text(json.dumps({key: data[key] for key in data if data[key] is not None}))


def assert_same_text(ours: Tokenizer, theirs: Tokenizer, count: int = 300) -> None:
    assert ours.special_ids == theirs.special_ids
    for text in strings(count):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)
        plain = ours.encode(text, prefix=False, parse_special=False)
        assert plain == theirs.encode(text, prefix=False, parse_special=False)
    assert ours.encode_chat(CHAT) == theirs.encode_chat(CHAT)
    assert ours.render(CHAT) == theirs.render(CHAT)


@pytest.mark.parametrize("layout", ["mlx", "hf"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("spelling", ["legacy", "parameters"])
@pytest.mark.parametrize(
    "shape", [{}, {"yarn": YARN}, {"tied": True}, {"bias": False, "rope_theta": 5e6}], ids=str
)
def test_the_result_reads_as_the_source(
    make_folder: FolderMaker,
    tmp_path: Path,
    layout: str,
    dialect: str,
    spelling: str,
    shape: Mapping[str, object],
) -> None:
    source = make_folder(dialect, spelling=spelling, **shape)
    config, tokenizer = opened(source)
    result, result_tokenizer = written(source, layout, tmp_path / "result")
    assert result == replace(config, family="glm4" if dialect == "glm4" else "glm")
    assert read_generation_config(source) == read_generation_config(tmp_path / "result")
    assert_same_text(result_tokenizer, tokenizer, count=30)


@pytest.mark.parametrize("dialect", ["chatglm", "glm"])
def test_the_2024_layout_reads_as_the_source(
    make_folder: FolderMaker, tmp_path: Path, dialect: str
) -> None:
    source = make_folder(dialect, rope_theta=5e6)
    config, tokenizer = opened(source)
    result, result_tokenizer = written(source, "chatglm", tmp_path / "result")
    assert result == replace(config, family="chatglm")
    assert_same_text(result_tokenizer, tokenizer)


@pytest.mark.parametrize("between", ["mlx", "hf"])
@pytest.mark.parametrize("ratio", [1, 500, 10000, 1.1])
def test_there_and_back_is_the_same_chatglm(
    make_folder: FolderMaker, tmp_path: Path, between: str, ratio: float
) -> None:
    source = make_folder("chatglm", edit_config=lambda config: config.update(rope_ratio=ratio))
    written(source, between, tmp_path / "between")
    written(tmp_path / "between", "chatglm", tmp_path / "back")
    for name in ("tokenizer.model", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    before, after = (
        json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "back")
    )
    assert after["auto_map"].pop("AutoConfig") == before.pop("auto_map")["AutoConfig"]
    assert {key: after[key] for key in before} == before
    before, after = (
        json.loads((f / "tokenizer_config.json").read_text()) for f in (source, tmp_path / "back")
    )
    del before["added_tokens_decoder"]  # the result spells out every flag
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize("layout", ["mlx", "chatglm"])
@pytest.mark.parametrize("dialect", ["chatglm", "glm"])
def test_the_bytes_depend_on_the_content_only(
    make_folder: FolderMaker, tmp_path: Path, dialect: str, layout: str
) -> None:
    source = make_folder(dialect)
    elsewhere = shutil.copytree(source, tmp_path / "elsewhere")
    files = files_of(source, layout)
    assert files == files_of(elsewhere, layout)
    assert not any(str(source.parent).encode() in data for data in files.values())
    assert not any(b".unfinished" in data for data in files.values())


def test_a_fast_tokenizer_is_copied_byte_for_byte(make_folder: FolderMaker) -> None:
    source = make_folder("glm4")
    (source / "special_tokens_map.json").write_text('{"eos_token":\n"<|endoftext|>"}')
    (source / "chat_template.jinja").write_bytes(b"a\r\n{{ messages }}")
    (source / "LICENSE").write_text("MIT")
    files = files_of(source, "mlx")
    for name in files.keys() - {"config.json", "tokenizer_config.json"}:
        assert files[name] == (source / name).read_bytes()
    assert files.keys() >= {"tokenizer.json", "special_tokens_map.json", "LICENSE"}


@pytest.mark.parametrize("layout", ["mlx", "chatglm"])
def test_no_code_is_copied_or_named(make_folder: FolderMaker, layout: str) -> None:
    source = make_folder("chatglm")
    (source / "tokenization_chatglm.py").write_text("raise SystemExit")
    edit_settings(source, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, name_or_path="here")
    files = files_of(source, layout)
    assert not any(name.endswith(".py") for name in files)
    settings = json.loads(files["tokenizer_config.json"])
    assert "name_or_path" not in settings
    if layout == "mlx":
        assert "auto_map" not in settings
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    else:
        name = "tokenization_chatglm.ChatGLM4Tokenizer"
        assert settings["auto_map"] == {"AutoTokenizer": [name, None]}


def test_the_built_in_chat_format_is_written_out(make_folder: FolderMaker, tmp_path: Path) -> None:
    """A chatglm folder without a template speaks as ChatGLM's code does, and so does its result."""
    source = make_folder("chatglm")
    edit_settings(source, chat_template=None)
    _, tokenizer = opened(source)
    _, result = written(source, "mlx", tmp_path / "result")
    assert (tmp_path / "result" / "chat_template.jinja").exists()
    tools = [{"type": "function", "function": TOOL}]
    assert "天气" in result.render(CHAT, tools=tools)
    assert result.encode_chat(CHAT, tools=tools) == tokenizer.encode_chat(CHAT, tools=tools)
    assert_same_text(result, tokenizer, count=30)


def test_a_base_model_stays_one(make_folder: FolderMaker, tmp_path: Path) -> None:
    source = make_folder("glm4")
    (source / "chat_template.jinja").unlink()
    with pytest.warns(GLMWarning, match="no chat template"):
        _, result = written(source, "mlx", tmp_path / "result")
    assert not result.has_chat_template
    assert "chat_template" not in json.loads(files_of(source, "mlx")["tokenizer_config.json"])


@pytest.mark.parametrize("layout", ["mlx", "chatglm"])
def test_named_chat_formats_stay_named(
    make_folder: FolderMaker, tmp_path: Path, layout: str
) -> None:
    named = [
        {"name": "default", "template": "{{ messages[0].content }}"},
        {"name": "tool_use", "template": "tools{{ tools | length }}"},
    ]
    source = make_folder("chatglm")
    edit_settings(source, chat_template=named)
    _, result = written(source, layout, tmp_path / "result")
    assert result.render(CHAT) == "Be brief."
    assert result.render(CHAT, tools=[{"type": "function", "function": TOOL}]) == "tools1"


@pytest.mark.parametrize("layout", ["mlx", "chatglm"])
def test_a_missing_generation_config_is_made(
    make_folder: FolderMaker, tmp_path: Path, layout: str
) -> None:
    source = make_folder("chatglm", edit_config=lambda config: config.update(eos_token_id=7))
    (source / "generation_config.json").unlink()
    written(source, layout, tmp_path / "result")
    made = json.loads((tmp_path / "result" / "generation_config.json").read_text())
    assert made["eos_token_id"] == [7, *stop_ids()]
    defaults = read_generation_config(source)
    assert read_generation_config(tmp_path / "result") == replace(
        defaults, eos_token_ids=(7, *stop_ids())
    )


def cut_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-100])


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def linked_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.rename(folder.parent / f"{folder.name}-outside")
    file.symlink_to(folder.parent / f"{folder.name}-outside")


def linked_licence(folder: Path) -> None:
    (folder / "LICENSE").symlink_to("/etc/hostname")


def endless_licence(folder: Path) -> None:
    os.mkfifo(folder / "LICENSE")


def large_licence(folder: Path) -> None:
    (folder / "LICENSE").write_bytes(b" " * (11 << 20))


def damaged_map(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text("{")


def damaged_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": -1}')


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_tokenizer, "damaged"),
        (no_tokenizer, "holds neither"),
        (linked_tokenizer, "link out of the folder"),
        (damaged_map, "not JSON"),
        (damaged_generation, "temperature"),
    ],
)
def test_damaged_files_are_refused(
    make_folder: FolderMaker, damage: Callable[[Path], None], reason: str
) -> None:
    source = make_folder("glm4")
    damage(source)
    with pytest.raises(GLMError, match=reason) as refusal:
        files_of(source, "mlx")
    assert refusal.value.exit_code == CheckpointError.exit_code
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (linked_licence, "link out of the folder"),
        (endless_licence, "special file"),
        (large_licence, "larger than"),
    ],
)
def test_a_licence_that_cannot_be_read_is_left_out_with_a_warning(
    make_folder: FolderMaker, damage: Callable[[Path], None], reason: str
) -> None:
    source = make_folder("glm4")
    whole = files_of(source, "mlx")
    damage(source)
    with pytest.warns(GLMWarning, match=f"licence of the source is left out: .*LICENSE.*{reason}"):
        assert files_of(source, "mlx") == whole


@pytest.mark.parametrize("dialect", ["chatglm", "glm"])
def test_a_tokenizer_of_another_model_is_refused(make_folder: FolderMaker, dialect: str) -> None:
    source = make_folder(dialect)
    config = replace(read_config(source), vocab_size=296)
    with pytest.raises(TokenizerError, match="has ids up to 296"):
        model_files(source, config, layout="mlx", quantization=None, dtype="float32")


def test_what_a_layout_cannot_hold_is_refused(make_folder: FolderMaker) -> None:
    with pytest.raises(OptionError, match="two more norms"):
        files_of(make_folder("glm4"), "chatglm")
    half_split = make_folder("chatglm", rope_interleaved=False)
    with pytest.raises(OptionError, match="original_rope is false"):
        files_of(half_split, "hf")
    assert json.loads(files_of(half_split, "mlx")["config.json"])["original_rope"] is False


def test_yarn_warns_where_chatglms_own_code_ignores_it(make_folder: FolderMaker) -> None:
    with pytest.warns(GLMWarning, match="knows no YaRN"):
        files = files_of(make_folder("glm", yarn=YARN), "chatglm")
    assert json.loads(files["config.json"])["rope_scaling"]["factor"] == 4.0
