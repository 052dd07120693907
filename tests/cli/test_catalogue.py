"""Model folders that are wrong, through the whole program: config, tokenizer, template, kind.

The three files of this name are the numbered list of bad inputs; the number that begins a test's
id is its kind. Here: 01 a path, 02 config.json as a file, 03 keys it lacks, 04 values of a wrong
type or range, 05 sizes beyond the weights, 06 another architecture, 07 another family, 08 heads,
09 the rotary share, 10 spellings of rope, 11 end of text, 12 tokenizer, 13 chat template,
14 quantization, 15 code in the folder, 16 to 18 weights of another kind, 19 links, 20 special
files, 21 names that differ by case.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from makers.folders import FolderMaker

Run = Callable[..., Result]
Refused = Callable[..., str]
Damage = Callable[[Path], object]
CONFIG, TOKENIZER, TEMPLATE = "config.json", "tokenizer.json", "chat_template.jinja"
BAD_INPUT = 3
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str | bytes) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def edit(name: str, change: Callable[[Any], object]) -> Damage:
    def damage(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return damage


def put(**values: object) -> Damage:
    return edit(CONFIG, lambda config: config.update(values))


def drop(*keys: str) -> Damage:
    return edit(CONFIG, lambda config: [config.pop(key) for key in keys])


def template(text: str) -> Damage:
    return write(TEMPLATE, text)


def only(name: str, content: str = "x") -> Damage:
    """Weights of another kind in place of the right ones."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_text(content)

    return damage


def link_out(folder: Path) -> None:
    elsewhere = folder.parent / f"{folder.name}-elsewhere.safetensors"
    shutil.move(folder / "model.safetensors", elsewhere)
    (folder / "model.safetensors").symlink_to(elsewhere)


def fifo(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def collide(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "Model.safetensors")


def add_token(id: int) -> Damage:
    token = {"id": id, "content": "<|new|>", "special": True, "normalized": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return edit(TOKENIZER, lambda data: data["added_tokens"].append(token | flags))


# What is wrong, and what the message names besides the file.
REFUSED: dict[str, tuple[Damage, str, tuple[str, ...]]] = {
    "02-absent": (remove(CONFIG), CONFIG, ("not found",)),
    "02-empty": (write(CONFIG, ""), CONFIG, ("empty",)),
    "02-not-json": (write(CONFIG, '{"a": 1,\n b}'), CONFIG, ("line 2, column 2",)),
    "02-not-utf8": (write(CONFIG, b'{"a": "\xff"}'), CONFIG, ("0xff", "line 1")),
    "02-list": (write(CONFIG, "[1]"), CONFIG, ("list",)),
    "02-deep": (write(CONFIG, "[" * 200_000), CONFIG, ("nested",)),
    "02-large": (write(CONFIG, b" " * (10 << 20) + b"{}"), CONFIG, ("10,485,760 bytes",)),
    "03": (drop("hidden_size", "vocab_size"), CONFIG, ("hidden_size", "vocab_size")),
    "04-string": (put(hidden_size="64"), CONFIG, ("hidden_size", "'64'")),
    "04-null": (put(num_attention_heads=None), CONFIG, ("num_attention_heads",)),
    "04-zero": (put(num_hidden_layers=0), CONFIG, ("num_hidden_layers", "0")),
    "04-negative": (put(vocab_size=-1), CONFIG, ("vocab_size", "-1")),
    "04-nan": (put(rms_norm_eps=float("nan")), CONFIG, ("NaN",)),
    "04-theta": (put(rope_theta=0), CONFIG, ("rope_theta", "0")),
    "05-layers": (put(num_hidden_layers=1_000_000), CONFIG, ("num_hidden_layers",)),
    "05-more-layers-than-weights": (put(num_hidden_layers=1000), "", ("1000 layers",)),
    "05-hidden": (put(hidden_size=65536), "", ("65536",)),
    "05-vocabulary": (put(vocab_size=4_000_000), "", ("4000000",)),
    "06": (put(model_type="llama"), CONFIG, ("llama", "chatglm", "glm4")),
    "07": (put(model_type="glm"), "", ("model_type", "glm4")),
    "08-heads": (put(num_key_value_heads=3), CONFIG, ("num_key_value_heads",)),
    "08-head-width": (put(head_dim=32), "", ("_proj", "(64, 64)", "(128, 64)")),
    "08-kv-heads": (put(num_key_value_heads=4), "", ("_proj", "(32,", "(64,")),
    "09-above-one": (put(partial_rotary_factor=1.5), CONFIG, ("partial_rotary_factor", "1.5")),
    "09-odd": (put(partial_rotary_factor=0.4375), CONFIG, ("partial_rotary_factor", "7")),
    "11-absent": (drop("eos_token_id"), CONFIG, ("eos_token_id",)),
    "11-string": (put(eos_token_id="<eos>"), CONFIG, ("eos_token_id",)),
    "11-outside": (put(eos_token_id=[400]), CONFIG, ("eos_token_id", "400")),
    "12-absent": (remove(TOKENIZER), "", (TOKENIZER,)),
    "12-cut": (lambda folder: os.truncate(folder / TOKENIZER, 500), TOKENIZER, ("not JSON",)),
    "12-other-model": (add_token(9999), "", ("9,999", "352")),
    "13-syntax": (template("{% for %}"), TEMPLATE, ("line 1",)),
    "13-raises": (template("{{ raise_exception('no') }}"), TEMPLATE, ("no",)),
    "13-attributes": (template("{{ ''.__class__.__mro__ }}"), TEMPLATE, ()),
    "13-large": (template("{{ 'x' * 10**9 }}"), TEMPLATE, ()),
    "14-contradicts": (put(quantization={"bits": 4, "group_size": 64}), "", ("quantization",)),
    "14-unknown-mode": (
        put(quantization={"bits": 4, "group_size": 64, "mode": "q4_k"}),
        CONFIG,
        ("q4_k",),
    ),
    "16-bin": (only("pytorch_model.bin"), "", ("pytorch_model.bin", "safetensors")),
    "17-gguf": (only("glm-q4.gguf"), "", ("glm-q4.gguf", "safetensors")),
    "18-pointer": (only("model.safetensors", LFS_POINTER), "model.safetensors", ("pointer",)),
    "19-link": (link_out, "model.safetensors", ("link out of the folder",)),
    "20-fifo": (fifo, "model.safetensors", ("not a regular file",)),
    "21-case": (collide, "", ("Model.safetensors", "case")),
}


@pytest.mark.parametrize(("damage", "file", "named"), REFUSED.values(), ids=REFUSED)
def test_case(
    refused: Refused,
    make_folder: FolderMaker,
    damage: Damage,
    file: str,
    named: tuple[str, ...],
) -> None:
    folder = make_folder("glm4")
    damage(folder)
    line = refused("generate", "--model", str(folder), "-p", "Hi", code=BAD_INPUT)
    for part in (str(folder / file), *named):
        assert part in line


def test_case_13_endless(refused: Refused, make_folder: FolderMaker) -> None:
    """A template has a time of its own to come to an end."""
    folder = make_folder("glm4")
    loop = "{% for a in range(99999) %}"
    template(f"{loop * 2}{'{% endfor %}' * 2}")(folder)
    how = {"code": BAD_INPUT, "limit_seconds": 10}
    line = refused("generate", "--model", str(folder), "-p", "Hi", **how)
    assert str(folder / TEMPLATE) in line


def test_case_14_absent(refused: Refused, make_folder: FolderMaker) -> None:
    folder = make_folder("glm4", quantize={"bits": 4, "group_size": 64})
    drop("quantization", "quantization_config")(folder)
    line = refused("generate", "--model", str(folder), "-p", "Hi", code=BAD_INPUT)
    assert "quantization" in line


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("./absent", "no such folder"),
        ("~/absent/folder", "no such folder"),
        ("absent", "neither a folder"),
        ("{here}/absent", "no such folder"),
        ("{here}/config.json", "is a file"),
        ("{here}/dangling", "link to nothing"),
    ],
    ids=lambda part: f"01-{part}",
)
def test_case_01(refused: Refused, make_folder: FolderMaker, name: str, found: str) -> None:
    folder = make_folder("glm4")
    (folder / "dangling").symlink_to("nowhere")
    name = name.format(here=folder)
    line = refused("generate", "--model", name, "-p", "Hi", code=BAD_INPUT)
    assert name in line
    assert found in line


ACCEPTED: dict[str, tuple[dict[str, Any], Damage, str]] = {
    "02-byte-order-mark": (
        {},
        lambda folder: write(CONFIG, b"\xef\xbb\xbf" + (folder / CONFIG).read_bytes())(folder),
        "",
    ),
    "10-legacy": ({"spelling": "legacy"}, lambda folder: None, ""),
    "10-parameters": ({"spelling": "parameters"}, lambda folder: None, ""),
    "13-absent": ({}, remove(TEMPLATE), "has no chat template"),
    "15-auto-map": ({}, put(auto_map={"AutoModel": "evil.Evil"}), "auto_map"),
    "15-model-file": ({}, put(model_file="evil.py"), "model_file"),
}


@pytest.mark.parametrize(("options", "change", "warned"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(
    run: Run,
    make_folder: FolderMaker,
    options: dict[str, Any],
    change: Damage,
    warned: str,
) -> None:
    folder = make_folder("glm4", **options)
    trace = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')")
    change(folder)
    result = run("generate", "--model", str(folder), "-p", "Hi", "-m", "3")
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == bool(warned)
    assert all(line.startswith("glm-mlx: warning: ") and warned in line for line in lines)
    assert not trace.exists()
