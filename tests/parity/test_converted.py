"""Converted folders in transformers' hands: config, ids and chat as this package has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from makers.folders import DIALECTS, FolderMaker

from glm_mlx.config import read_config
from glm_mlx.convert.files import model_files
from glm_mlx.text import Tokenizer

pytestmark = pytest.mark.parity

TEXTS = ("", "hello 你好 👋", "\n\n 12345 the\t's", "x[gMASK]<sop>", "in er\r\n<|user|>x")
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello 你好"},
    {"role": "assistant", "content": "123"},
    {"role": "user", "content": " the weather?"},
]
TOOL = {"type": "function", "function": {"name": "天气", "parameters": {"type": "object"}}}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0}


@pytest.fixture(params=["mlx", "hf"])
def converted(request: pytest.FixtureRequest, make_folder: FolderMaker, tmp_path: Path) -> Any:
    """Return `converted(dialect, **options)`: a folder with the small files of the result.

    `templates=False` leaves the chat format to this package.
    """

    def convert(dialect: str, *, templates: bool = True, **options: object) -> Path:
        source = make_folder(dialect, **options)
        if not templates:
            settings = json.loads((source / "tokenizer_config.json").read_text())
            del settings["chat_template"]
            (source / "tokenizer_config.json").write_text(json.dumps(settings))
        config = read_config(source, trust_config=True)
        made = model_files(
            source, config, layout=request.param, quantization=None, dtype="bfloat16"
        )
        for name, data in made.items():
            (tmp_path / name).write_bytes(data)
        return tmp_path

    return convert


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("spelling", ["legacy", "parameters"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"rope_theta": 5e6, "bias": False}, {"yarn": YARN}, {"tied": True}],
    ids=["plain", "theta", "yarn", "tied"],
)
def test_their_config_has_our_values(
    converted: Any, dialect: str, spelling: str, shape: dict[str, object]
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = converted(dialect, spelling=spelling, **shape)
    ours = read_config(folder, trust_config=True)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert type(theirs).__name__ == ("Glm4Config" if dialect == "glm4" else "GlmConfig")
    for name, value in {
        "attention_bias": ours.attention_bias,
        "head_dim": ours.head_dim,
        "hidden_size": ours.hidden_size,
        "intermediate_size": ours.intermediate_size,
        "max_position_embeddings": ours.max_position_embeddings,
        "num_attention_heads": ours.num_heads,
        "num_hidden_layers": ours.num_layers,
        "num_key_value_heads": ours.num_kv_heads,
        "pad_token_id": ours.pad_token_id,
        "rms_norm_eps": ours.rms_norm_eps,
        "tie_word_embeddings": ours.tie_word_embeddings,
        "vocab_size": ours.vocab_size,
    }.items():
        assert getattr(theirs, name) == value, name
    assert tuple(theirs.eos_token_id) == ours.eos_token_ids
    assert str(theirs.dtype).removeprefix("torch.") == "bfloat16"
    rope = theirs.rope_parameters
    assert rope["rope_theta"] == ours.rope_theta
    assert int(theirs.head_dim * rope["partial_rotary_factor"]) == ours.rotary_dim
    if ours.yarn is None:
        assert rope["rope_type"] == "default"
    else:
        assert rope["rope_type"] == "yarn"
        assert {name: rope[name] for name in vars(ours.yarn)} == vars(ours.yarn)


@pytest.mark.parametrize(
    ("dialect", "templates"), [(d, True) for d in DIALECTS] + [("chatglm", False)]
)
def test_their_tokenizer_has_our_ids(converted: Any, dialect: str, templates: bool) -> None:
    transformers = pytest.importorskip("transformers")
    folder = converted(dialect, templates=templates)
    ours = Tokenizer.from_folder(folder, vocab_size=352, family="glm")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == "[gMASK]<sop>" + text
    chat = CHAT if templates else [{**CHAT[0], "tools": [TOOL]}, *CHAT[1:]]
    rendered = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == ours.render(chat)
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
    assert ids["input_ids"] == ours.encode_chat(chat)
