"""Conversions as processes that are stopped, and what an independent reader finds afterwards.

Reads results with json, hashlib and the safetensors library only, and imports nothing of the
package under test.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

PATIENCE_SECONDS = 600
USAGE = 2
DISTURB = Path(__file__).with_name("disturb.py")
PROGRAM = (sys.executable, "-m", "glm_mlx")
_SHARDS = "model*.safetensors"

Hashes = Mapping[str, str]
Stop = Callable[[list[str]], "Ended"]


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    errors: str = ""


def run(arguments: Sequence[str], *, program: Sequence[str] = PROGRAM) -> Ended:
    """Run a command line to its end."""
    done = subprocess.run(
        [*program, *arguments], capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    return Ended(done.returncode, done.stderr.decode("utf-8", "replace"))


def disturbed(arguments: Sequence[str], how: str, number: int) -> Ended:
    """Run a command line with its disk call of this number disturbed (see `disturb.py`)."""
    return run(arguments, program=(sys.executable, str(DISTURB), how, str(number)))


def disk_calls(arguments: Sequence[str]) -> list[str]:
    """Run a command line undisturbed and return the disk calls it makes, in order."""
    ended = disturbed(arguments, "list", 0)
    assert ended.code == 0, ended.errors
    calls: list[str] = json.loads(ended.errors.splitlines()[-1])
    return calls


def hash_folder(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under a folder by its relative name."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            hashes[path.relative_to(folder).as_posix()] = digest
    return hashes


def stamp_folder(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what changes when a file is touched, of the folder itself too."""
    stamps: dict[str, tuple[int, ...]] = {}
    for path in (folder, *folder.rglob("*")):
        status = path.stat()
        stamps[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
    return stamps


def check_readable(folder: Path) -> None:
    """Read a finished folder with other people's code: configuration, index, shards, hashes."""
    json.loads((folder / "config.json").read_bytes())
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())
    checksums = json.loads((folder / "checksums.json").read_bytes())["files"]
    found: dict[str, str] = {}
    for shard in folder.glob(_SHARDS):
        with safe_open(shard, framework="np") as reader, shard.open("rb") as file:
            found |= dict.fromkeys(reader.keys(), shard.name)
            assert checksums[shard.name] == hashlib.file_digest(file, "sha256").hexdigest()
    assert found == index["weight_map"]


class Failure(AssertionError):
    """A promise that was not kept; the first argument is its kind."""


@dataclass
class Outcome:
    """What one stopped conversion left, and what its continuation made of it.

    Attributes:
        left: "nothing", "unfinished", "finished", or with overwriting "before" for the old model.
        shards: whole shards in the unfinished folder.
        redone: shards that had been begun and were made once more.
    """

    ended: Ended
    left: str
    shards: int = 0
    redone: int = 0


@dataclass
class Conversion:
    """One conversion that is done again and again, stopped each time in another way.

    Attributes:
        expected: the hashes of an uninterrupted run, filled by `convert_whole`.
        before: another finished model that stands at the destination when a run begins.
    """

    source: Path
    options: tuple[str, ...]
    expected: Hashes = field(default_factory=dict)
    before: Path | None = None

    def command(self, destination: Path) -> list[str]:
        """Return the arguments of the program."""
        return ["convert", str(self.source), str(destination), *self.options]

    def convert_whole(self, destination: Path) -> None:
        """Convert without a stop, and take the result as what all others must equal."""
        ended = run(self.command(destination))
        assert ended.code == 0, ended.errors
        check_readable(destination)
        self.expected = hash_folder(destination)

    def try_stop(
        self, place: Path, stop: Stop, release: Callable[[], None] | None = None
    ) -> Outcome:
        """Stop one conversion in an empty folder, look, continue it, look again.

        One that was finished is run again too: it is refused, and the last traces are gone.

        Args:
            place: the parent of the destination; made and removed here.
            stop: runs the command line given and stops it somehow.
            release: removes what stopped it, before it is continued.

        Raises:
            Failure: something is damaged, mixed, touched, or made twice.
        """
        destination = place / "model"
        place.mkdir(exist_ok=True)
        old: Hashes | None = None
        if self.before is not None:
            shutil.copytree(self.before, destination)
            old = hash_folder(destination)
        stamps = stamp_folder(self.source)
        ended = stop(self.command(destination))
        left = self._look(destination, old)
        unfinished = destination.with_name("model.unfinished")
        begun = _begun(unfinished)
        outcome = Outcome(ended, left, len(list(unfinished.glob(_SHARDS))))
        if release is not None:
            release()
        continued = run(self.command(destination))
        refuses = left == "finished" and self.before is None
        if continued.code != (USAGE if refuses else 0):
            raise Failure("not continued", f"{continued.code}: {continued.errors[-300:]}")
        outcome.redone = len(begun - _begun(destination))
        if outcome.redone > 1:
            raise Failure("made twice", str(outcome))
        if stamp_folder(self.source) != stamps:
            raise Failure("source touched")
        self._compare("different", destination)
        check_readable(destination)
        if strays := [path.name for path in place.iterdir() if path != destination]:
            raise Failure("left over", str(strays))
        shutil.rmtree(place)
        return outcome

    def _look(self, destination: Path, old: Hashes | None) -> str:
        """Check what a stop left and return its name."""
        unfinished = destination.with_name("model.unfinished")
        shards = {name for name in self.expected if name.endswith(".safetensors")}
        whole = {path.name for path in unfinished.glob(_SHARDS)}
        for name in whole:
            if _hash(unfinished / name) != self.expected.get(name):
                raise Failure("damaged", f"{name} is under its final name and not whole")
        if (unfinished / "config.json").exists() and whole != shards:
            raise Failure("looks finished", f"config.json beside {len(whole)} shards")
        if destination.exists():
            if old is not None and hash_folder(destination) == old:
                return "before"
            self._compare("mixed", destination)
            return "finished"
        return "unfinished" if unfinished.exists() else "nothing"

    def _compare(self, kind: str, destination: Path) -> None:
        found = hash_folder(destination)
        if wrong := sorted(name for name, _ in found.items() ^ self.expected.items()):
            raise Failure(kind, str(wrong))


def _begun(folder: Path) -> set[tuple[str, int, int]]:
    """The shards of a folder, whole or not, as things that a rewrite would change."""
    found = set()
    for path in folder.glob(f"{_SHARDS}*"):
        if path.suffix in (".safetensors", ".part"):
            status = os.stat(path)
            found.add((path.name, status.st_ino, status.st_mtime_ns))
    return found


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
