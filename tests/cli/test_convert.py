"""`convert`: what reaches the converter, what is printed, and how the work is cut short."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from makers.folders import FolderMaker

from glm_mlx.api import ConversionReport, Progress, Recipe
from glm_mlx.convert.report import TensorReport
from glm_mlx.errors import HubError, OptionError, ResourceError

Run = Callable[..., Result]
Refused = Callable[..., str]
TENSOR = TensorReport("model.layers.0.mlp.down_proj.weight", (64, 128), "affine 4/64", 4608, 0.071)
REPORT = ConversionReport(
    source="src",
    revision=None,
    layout="mlx",
    recipe={"mode": "affine", "layout": "mlx"},
    versions={"glm-mlx": "0.1.0"},
    tensors=(TENSOR,),
    skipped=(),
    files={"model.safetensors": "00"},
)
DEFAULTS = {
    "quantize": None,
    "dtype": None,
    "dequantize": False,
    "revision": None,
    "rope": None,
    "trust_config": False,
    "overwrite": False,
    "allow_overflow": False,
    "max_shard_bytes": 1 << 30,
    "learn": None,
    "calibration": None,
}


class FakeConverter:
    """Converts nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.midway: Callable[[], object] = lambda: None

    def __call__(
        self, source: str, dest: Path, *, on_progress: Callable[[Progress], None], **options: Any
    ) -> ConversionReport:
        self.asked.append((source, str(dest), options))
        on_progress(Progress("measuring", 10, 10, "a"))
        on_progress(Progress("converting", 5, 10, "b"))
        self.midway()
        on_progress(Progress("converting", 10, 10, "c"))
        return REPORT


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeConverter:
    found = FakeConverter()
    monkeypatch.setattr("glm_mlx.cli.convert.convert_model", found)
    return found


@pytest.mark.parametrize(
    ("words", "source", "dest", "options"),
    [
        ("src out", "src", "out", {}),
        ("own/src", "own/src", "src-mlx", {}),
        ("./a/src -q", "./a/src", "src-4bit", {"quantize": Recipe()}),
        ("src --dtype float16", "src", "src-float16", {"dtype": "float16"}),
        ("-q src out", "src", "out", {"quantize": Recipe()}),
        ("-q 8bit src out", "src", "out", {"quantize": Recipe(bits=8)}),
        ("src out --quantize mxfp4", "src", "out", {"quantize": Recipe(mode="mxfp4")}),
        ("--hf-path src --mlx-path out -q --q-bits 8", "src", "out", {"quantize": Recipe(bits=8)}),
        ("--model own/src -q --mlx-path out --q-group-size 32", "own/src", "out",
         {"quantize": Recipe(group_size=32)}),
        ("src --mlx-path out -d", "src", "out", {"dequantize": True}),
        ("src out --revision v1 --rope-theta 5e6 --yarn 2 --trust-config", "src", "out",
         {"revision": "v1", "trust_config": True,
          "rope": {"rope_theta": 5e6, "rope_type": "yarn", "factor": 2}}),
        ("src out --overwrite --allow-overflow --max-shard-size 5GB", "src", "out",
         {"overwrite": True, "allow_overflow": True, "max_shard_bytes": 5 * 10**9}),
        ("src out -q --learn awq --calibration text.txt", "src", "out",
         {"quantize": Recipe(), "learn": "awq", "calibration": Path("text.txt")}),
    ],
)  # fmt: skip
def test_a_command_line_becomes_a_call(
    run: Run, fake: FakeConverter, words: str, source: str, dest: str, options: dict[str, Any]
) -> None:
    result = run("convert", *words.split())
    assert result.exit_code == 0, result.stderr
    assert fake.asked == [(source, dest, DEFAULTS | options)]
    assert result.stdout == REPORT.table()
    assert result.stderr == f"glm-mlx: done: {dest}, 4.61 kB, 4.500 bits a weight\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "nothing to convert: give SOURCE"),
        ("src --hf-path src", "SOURCE and --hf-path are the same thing"),
        ("src out --mlx-path out", "DEST and --mlx-path are the same thing"),
        ("src out more", "unexpected extra argument"),
        ("src -q 4bit --q-bits 8", "--quantize 4bit and --q-bits 8 contradict each other"),
        ("src -q 3bitt", "recipe '3bitt' is unknown"),
        ("src --q-group-size 48", "group size 48 is not supported; use 32, 64 or 128"),
        ("src --dtype int8", "'int8' is not one of"),
        ("src --max-shard-size 5", "write it like 5GB"),
        ("src --private", "give --upload-repo"),
        ("src --dry-run", "give --upload-repo"),
        ("~nobody:/x", "source is '~nobody:/x', the home of no user here"),
        ("src --upload-repo glm", "repository 'glm' is not owner/name"),
    ],
)
def test_contradictions_are_refused_before_any_work(
    refused: Refused, fake: FakeConverter, words: str, said: str
) -> None:
    assert said in refused("convert", *words.split(), code=2)
    assert fake.asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--mlx-path ~nobody:/x", "destination is '~nobody:/x', the home of no user here"),
        ("-q --learn awq --calibration ~nobody:/x", "calibration is '~nobody:/x', the home of"),
        ("-q -d", "--quantize and --dequantize exclude each other"),
        ("-q --learn awq", "--learn and --calibration need each other"),
        ("--learn awq --calibration text.txt", "give --quantize too"),
    ],
)
def test_contradictions_that_the_converter_itself_refuses(
    refused: Refused, make_folder: FolderMaker, words: str, said: str
) -> None:
    target = () if "--mlx-path" in words else ("--mlx-path", "out")
    assert said in refused("convert", str(make_folder("glm4")), *target, *words.split(), code=2)


def test_code_of_a_model_stays_unrun_and_that_is_said(run: Run, fake: FakeConverter) -> None:
    result = run("convert", "src", "--trust-remote-code")
    assert result.exit_code == 0
    assert fake.asked == [("src", "src-mlx", DEFAULTS)]
    assert "--trust-remote-code changes nothing" in result.stderr


def test_programs_get_json_lines(run: Run, fake: FakeConverter) -> None:
    result = run("convert", "src", "out", "--json")
    *progress, done = map(json.loads, result.stdout.splitlines())
    assert done == {"event": "done", "folder": "out", "report": json.loads(REPORT.to_json())}
    assert [
        (line["event"], line["stage"], line["done_bytes"], line["total_bytes"], line["item"])
        for line in progress
    ] == [
        ("progress", "measuring", 10, 10, "a"),
        ("progress", "converting", 5, 10, "b"),
        ("progress", "converting", 10, 10, "c"),
    ]
    first, last = progress[1:]
    assert (first["bytes_per_second"], first["remaining_seconds"]) == (None, None)
    assert last["bytes_per_second"] > 0
    assert last["remaining_seconds"] == 0


def test_json_lines_are_a_few_a_second(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(*_: object, on_progress: Callable[[Progress], None], **__: object) -> Any:
        for done in range(1, 1001):
            on_progress(Progress("converting", done, 1000, ""))
        return REPORT

    monkeypatch.setattr("glm_mlx.cli.convert.convert_model", convert)
    *progress, _ = run("convert", "src", "--json").stdout.splitlines()
    assert 2 <= len(progress) < 100
    assert json.loads(progress[-1])["done_bytes"] == 1000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leads_back_to_the_same_command(
    run: Run, fake: FakeConverter, number: int, code: int
) -> None:
    fake.midway = lambda: os.kill(os.getpid(), number)
    result = run("convert", "src", "out")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "glm-mlx: stopped: the same command goes on from here\n"


@pytest.mark.parametrize(("error", "code"), [(ResourceError("full"), 4), (OptionError("no"), 2)])
def test_errors_keep_their_exit_code(
    refused: Refused, fake: FakeConverter, error: Exception, code: int
) -> None:
    def fail() -> None:
        raise error

    fake.midway = fail
    assert refused("convert", "src", code=code).endswith(str(error))


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have gone to the Hub, which cannot be reached from `unreachable/...`."""
    sent: list[tuple[Any, ...]] = []

    def upload(folder: Path, repo: str, *, files: Any, card: str, private: bool) -> str:
        if repo.startswith("unreachable/"):
            raise HubError("the Hub cannot be reached", file=repo)
        sent.append((folder.name, repo, set(files), private))
        return f"https://huggingface.co/{repo}"

    monkeypatch.setattr(import_module("glm_mlx.api.convert"), "send", upload)
    return sent


FILES = {
    "README.md",
    "chat_template.jinja",
    "checksums.json",
    "config.json",
    "conversion.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_a_conversion_is_uploaded(
    run: Run, make_folder: FolderMaker, tmp_path: Path, uploads: list[tuple[Any, ...]]
) -> None:
    words = (
        str(make_folder("glm4")),
        str(tmp_path / "out"),
        "--upload-repo",
        "own/er",
        "--private",
    )
    result = run("convert", *words)
    assert result.exit_code == 0, result.stderr
    assert uploads == [("out", "own/er", FILES, True)]
    assert result.stdout.endswith("\nhttps://huggingface.co/own/er\n")


def test_a_dry_run_converts_and_sends_nothing(
    run: Run, make_folder: FolderMaker, tmp_path: Path, uploads: list[tuple[Any, ...]]
) -> None:
    out = tmp_path / "out"
    words = ("-q", str(make_folder("glm4")), str(out), "--upload-repo", "own/er", "--dry-run")
    result = run("convert", *words)
    assert result.exit_code == 0, result.stderr
    assert uploads == []
    assert "glm-mlx generate --model own/er" in result.stdout
    assert "\nlibrary_name: mlx\n" in result.stdout
    size = (out / "model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors\n" in result.stdout


def test_json_ends_with_the_report_whatever_is_uploaded(
    run: Run, make_folder: FolderMaker, tmp_path: Path, uploads: list[tuple[Any, ...]]
) -> None:
    words = (str(make_folder("glm4")), str(tmp_path / "out"), "--upload-repo", "own/er", "--json")
    events = [json.loads(line) for line in run("convert", *words).stdout.splitlines()]
    assert [event["event"] for event in events[-2:]] == ["upload", "done"]
    assert events[-2]["address"] == "https://huggingface.co/own/er"
    assert set(events[-2]["files"]) == FILES


def test_a_failed_upload_leaves_a_finished_conversion_and_says_how_to_send_it(
    run: Run, make_folder: FolderMaker, tmp_path: Path, uploads: list[tuple[Any, ...]]
) -> None:
    out = tmp_path / "out"
    result = run("convert", str(make_folder("glm4")), str(out), "--upload-repo", "unreachable/x")
    assert result.exit_code == 5
    assert (out / "config.json").is_file()
    note = f"glm-mlx: note: {out} is finished; to send it: glm-mlx upload {out} unreachable/x\n"
    assert note in result.stderr
    assert result.stderr.endswith("glm-mlx: error: unreachable/x: the Hub cannot be reached\n")
    assert run("upload", str(out), "own/er").stdout == "https://huggingface.co/own/er\n"
    assert uploads == [("out", "own/er", FILES, False)]


@pytest.mark.parametrize(
    "words",
    [
        "-q 4bit --quant-predicate mixed_4_6",
        "-q mxfp4 --target-bits 4.5",
        "--target-size 5GB --target-bits 4",
        "--q-group-size 48",
        "--target-bits 0",
        "--embed-bits 7",
        "--q-group-size 128",
        "--max-shard-size 0GB",
        "--learn awq",
    ],
)
def test_messages_name_no_field_of_python(
    refused: Refused, make_folder: FolderMaker, words: str
) -> None:
    said = refused("convert", str(make_folder("glm4")), "out", *words.split(), code=2)
    for name in "group_size", "target_b", "embed_bits", "max_shard_bytes", "quant_predicate":
        assert name not in said
