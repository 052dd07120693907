"""`info`: the facts of every layout, from headers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import mlx.core as mx
import pytest
from click.testing import Result
from makers.folders import DIALECTS, FolderMaker, Shape, make_weights

from glm_mlx import convert
from glm_mlx.checkpoint import Checkpoint

Run = Callable[..., Result]
SHAPE = Shape(num_layers=3, max_position_embeddings=1000)
LAYOUT = {"num_layers": SHAPE.num_layers, "max_position_embeddings": 1000}
VALUES_PER_TOKEN = 2 * SHAPE.num_layers * SHAPE.num_kv_heads * SHAPE.head_dim


@pytest.fixture(autouse=True)
def headers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if weights are loaded."""

    def read(*_: object) -> NoReturn:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(Checkpoint, "read", read)


def facts(run: Run, *arguments: str) -> dict[str, Any]:
    result = run("info", "--json", *arguments)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_facts_of_every_layout(run: Run, make_folder: FolderMaker, dialect: str) -> None:
    folder = make_folder(dialect, dtype=mx.bfloat16, shards=2, **LAYOUT)
    found = facts(run, "--model", str(folder))
    weights = make_weights(SHAPE, sandwich=dialect == "glm4")
    parameters = sum(array.size for array in weights.values())
    unused = SHAPE.head_dim // 4 if dialect == "chatglm" else 0  # stale rotary frequencies
    assert found["folder"] == str(folder)
    assert found["config"]["family"] == dialect
    assert found["config"]["num_layers"] == 3
    assert found["config"]["attention_bias"] is True
    assert found["config"]["quantization"] is None
    assert found["parameters"] == parameters
    assert found["files"] == 2
    assert found["weight_bytes"] == {"BF16": 2 * (parameters + unused)}
    assert found["kv_bytes_per_token"] == 2 * VALUES_PER_TOKEN
    assert found["kv_bytes_full_context"] == 2000 * VALUES_PER_TOKEN
    assert found["special_ids"]["<|user|>"] in found["stop_ids"]
    assert found["chat_template"].startswith(f"{folder}/")
    assert found["sampling"]["temperature"] == 0.8


def test_quantizing_changes_bytes_and_no_count(run: Run, make_folder: FolderMaker) -> None:
    plain = facts(run, "--model", str(make_folder("glm4", **LAYOUT)))
    overrides = {"lm_head": False}
    folder = make_folder(
        "glm4", quantize={"bits": 4, "group_size": 32}, overrides=overrides, **LAYOUT
    )
    found = facts(run, "--model", str(folder))
    assert found["parameters"] == plain["parameters"]
    assert found["weight_bytes"].keys() == {"F32", "U32"}
    assert sum(found["weight_bytes"].values()) < 0.5 * plain["weight_bytes"]["F32"]
    spec = {"bits": 4, "group_size": 32, "mode": "affine", "overrides": 1}
    assert found["config"]["quantization"] == spec


def test_options_lie_over_the_config(run: Run, make_folder: FolderMaker) -> None:
    words = ("--rope-theta", "5e6", "--yarn", "4")
    found = facts(run, "--model", str(make_folder("glm4", **LAYOUT)), *words)
    assert found["config"]["rope_theta"] == 5e6
    assert found["config"]["yarn"]["factor"] == 4
    assert found["config"]["max_position_embeddings"] == 4000


def test_a_person_reads_lines(run: Run, make_folder: FolderMaker) -> None:
    folder = make_folder("glm4", quantize={"bits": 8, "group_size": 64}, **LAYOUT)
    words = ("--model", str(folder), "--yarn", "2", "--rope-theta", "1e8")
    result = run("info", "--check", *words)
    assert result.exit_code == 0
    lines = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert lines["model"] == str(folder)
    assert lines["family"] == "glm4, 3 layers, hidden 64, feed-forward 128"
    assert lines["attention"] == "4 heads, 2 for keys and values, of 16, with bias"
    assert lines["rotary"] == "8 of 16, theta 100,000,000, YaRN factor 2"
    assert lines["context"] == "2,000 tokens"
    assert lines["quantization"] == "affine, 8 bits, groups of 64"
    assert lines["weights"].endswith(" in 1 file")
    assert lines["sampling"] == "temperature 0.8, top_p 0.8"
    assert lines["check"] == "every value is finite"


def test_nothing_in_a_folder_reaches_the_terminal_as_it_is(
    run: Run, make_folder: FolderMaker, tmp_path: Path
) -> None:
    """Names of folders and tokens are whatever their maker liked, such as escape sequences."""
    folder = make_folder("glm4").rename(tmp_path / "a\n\x1b[2J\u202e")
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    token = {"id": max(each["id"] for each in tokenizer["added_tokens"]) + 1, "content": "\x1b]0;"}
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | token)
    file.write_text(json.dumps(tokenizer))
    result = run("info", "--model", str(folder))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines[0].endswith(r"/a\n\x1b[2J\u202e")
    assert rf"\x1b]0; {token['id']}" in result.stdout
    found = facts(run, "--model", str(folder))
    assert found["folder"] == str(folder)
    assert found["special_ids"][token["content"]] == token["id"]


def test_a_base_model_has_no_template(run: Run, make_folder: FolderMaker) -> None:
    folder = make_folder("glm4")
    (folder / "chat_template.jinja").unlink()
    assert facts(run, "--model", str(folder))["chat_template"] is None


def test_the_embedded_model(run: Run) -> None:
    result = run("info")
    assert result.exit_code == 0
    assert "embedded" in result.stderr


def test_a_converted_folder_shows_its_report(
    run: Run, make_folder: FolderMaker, tmp_path: Path
) -> None:
    report = convert(make_folder("chatglm", **LAYOUT), tmp_path / "out", quantize="8bit")
    assert facts(run, str(tmp_path / "out"))["conversion"] == json.loads(report.to_json())
    text = run("info", str(tmp_path / "out")).stdout
    assert text.endswith("\n" + report.table())
    assert "\nconverted from  " in text
    assert "conversion" not in facts(run, str(make_folder("glm4", **LAYOUT)))


def test_a_model_is_an_argument_or_an_option(run: Run, make_folder: FolderMaker) -> None:
    folder = str(make_folder("glm4", **LAYOUT))
    assert facts(run, folder) == facts(run, "--model", folder)
    result = run("info", folder, "--model", folder)
    assert result.exit_code == 2
    assert "PATH_OR_REPO and --model are the same thing" in result.stderr
