"""`glm-mlx doctor`: whether this machine can run models, and what to tell whoever helps."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import click

from glm_mlx.cli import terminal
from glm_mlx.cli.options import debug_option

_OPTIONAL = ("mlx-lm",)
_LOW_DISK_BYTES = 20_000_000_000  # less holds no 9B model
_BROKEN = 1
_QUESTION, _ANSWER = "Who are you?", "GLM nano"


@dataclass(frozen=True)
class Finding:
    """What one look at the machine gave; `fail` alone means that models will not run."""

    name: str
    status: Literal["ok", "warn", "fail"]
    text: str


@click.command()
@click.option("--json", is_flag=True, help="Print a JSON object.")
@debug_option
def doctor(json: bool) -> None:
    """Check that this machine can run models.

    Exits with 1 if something is broken.
    """
    findings = []
    for look in (_python, _packages, _device, _memory, _hub_cache, _reply):
        for finding in look():
            findings.append(finding)
            if not json:
                text = terminal.printable(finding.text)
                terminal.emit(f"{finding.status:<5} {finding.name:<16} {text}\n")
    healthy = all(finding.status != "fail" for finding in findings)
    if json:
        checks = [asdict(finding) for finding in findings]
        terminal.emit_json({"healthy": healthy, "checks": checks})
    if not healthy:
        raise click.exceptions.Exit(_BROKEN)


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Finding("system", "ok", platform.platform())


def _packages() -> Iterator[Finding]:
    required = [line for line in requires("glm-mlx") or () if "extra ==" not in line]
    needed = dict.fromkeys(["glm-mlx", *(re.split(r"[^\w-]", line)[0] for line in required)])
    for name in (*needed, *_OPTIONAL):
        try:
            yield Finding(name, "ok", version(name))
        except PackageNotFoundError:
            if name in needed:
                yield Finding(name, "fail", "not installed; install glm-mlx again")


def _device() -> Iterator[Finding]:
    import mlx.core as mx

    chip = str(mx.device_info().get("device_name", "unknown"))
    if mx.metal.is_available():
        yield Finding("device", "ok", f"Metal on {chip}")
    elif sys.platform == "darwin":
        why = "this Python runs under Rosetta" if platform.machine() == "x86_64" else "no GPU found"
        yield Finding("device", "fail", f"no Metal on {chip}: {why}")
    else:
        yield Finding("device", "warn", f"CPU only, {chip}; models are meant for Apple Silicon")


def _memory() -> Iterator[Finding]:
    import mlx.core as mx

    total, limit, active = (
        terminal.human_bytes(size_bytes)
        for size_bytes in (
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            mx.get_memory_limit(),
            mx.get_active_memory(),
        )
    )
    yield Finding("memory", "ok", f"{total} here, MLX may use {limit} and uses {active}")


def _hub_cache() -> Iterator[Finding]:
    folder = _hub_folder()
    if str(folder).startswith("~"):
        text = f"{folder} names an unknown home folder; check HF_HUB_CACHE and HF_HOME"
        yield Finding("hub cache", "warn", text)
        return
    blobs = folder.glob("*/blobs/*")
    try:
        used = sum(path.lstat().st_size for path in blobs if not path.is_symlink())
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield Finding("hub cache", "warn", f"{folder} cannot be read: {error.strerror}")
        return
    status: Literal["ok", "warn"] = "ok" if free >= _LOW_DISK_BYTES else "warn"
    yield Finding(
        "hub cache",
        status,
        f"{folder}, holds {terminal.human_bytes(used)}, {terminal.human_bytes(free)} free",
    )


def _hub_folder() -> Path:
    """Where huggingface_hub keeps models, by its rules, without the cost of importing it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    folder = os.environ.get("HF_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def _reply() -> Iterator[Finding]:
    from glm_mlx.api import load

    try:
        with load() as glm:
            reply = glm.generate(
                [{"role": "user", "content": _QUESTION}], temperature=0, max_tokens=20
            )
    except Exception as error:  # whatever is broken here is what this command looks for
        yield Finding("reply", "fail", f"the embedded model fails: {type(error).__name__}: {error}")
        return
    text = reply.text.strip()
    status: Literal["ok", "fail"] = "ok" if _ANSWER in text else "fail"
    yield Finding("reply", status, f"the embedded model says to {_QUESTION!r}: {text!r}")
