"""The folder in which a result is made, and the one step in which it becomes the result.

Everything is written in DEST.unfinished, which the journal beside it records and locks; at the end
that folder is renamed to DEST, and until then nothing has this name. A result to be replaced waits
as DEST.replaced for that moment. Knows folders; which files are a conversion's is for `ours` to
say, and what they hold is the pipeline's.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import unicodedata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from glm_mlx.checkpoint.folder import INDEX
from glm_mlx.checkpoint.refusal import join, quote
from glm_mlx.checkpoint.writer import PART, disk_errors, sync_folder, write_file
from glm_mlx.convert.journal import Journal
from glm_mlx.convert.ours import is_ours, strangers, strangers_in_result
from glm_mlx.convert.report import REPORT
from glm_mlx.errors import GLMWarning, OptionError, ResourceError

_PLACE_IS_WRONG = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.EINVAL,
}
_BLOCK_BYTES = 4 << 20


class Staging:
    """A conversion under way; a context manager that holds the lock.

    Leaving it without `finish` keeps what is there for the next run, if anything is.

    Attributes:
        folder: where the files of the result are written.
        done: shard name -> entry, of the shards that an earlier run or this one recorded and that
            still have the sha256 of their entry.
    """

    def __init__(
        self, destination: Path, *, source: Path, fingerprint: str, overwrite: bool
    ) -> None:
        """Name a destination; nothing is looked at or made before the context is entered.

        Args:
            source: the folder that is read, which must lie apart.
            fingerprint: equal for two runs that make the same files.
            overwrite: replace a finished result of ours, or an unfinished one of other settings or
                with a damaged journal.

        Raises:
            OptionError: a path is relative to a working folder that is gone.
        """
        self._destination = _absolute(destination)
        self._source = _absolute(source)
        self._fingerprint = fingerprint
        self._overwrite = overwrite
        self._is_finished = False
        self._replaced = self._beside(".replaced")
        self._journal_file = self._beside(".unfinished.journal")
        self.folder = self._beside(".unfinished")

    def __enter__(self) -> Self:
        """Take the destination, or refuse it before anything is changed.

        Raises:
            OptionError: the destination is the source, around it or inside it; holds something
                else, or a result and `overwrite` is not given; is held by another process, or
                by an unfinished conversion of other settings; or cannot be a folder.
            ResourceError: the disk fails.
        """
        with disk_errors(self.folder):
            self._check_place()
            self._had_journal = os.path.lexists(self._journal_file)
            if not self._had_journal:
                self._check_destination()
            with self._creating():
                if not self._destination.parent.exists():
                    os.makedirs(self._destination.parent)
                self._journal = Journal(self._journal_file)
            try:
                self._repair()
                self._check_destination()
                self._open_folder()
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._is_finished and not self._journal.replacing:
                with suppress(OSError):
                    self._remove_traces()
        finally:
            self._journal.close()

    @property
    def done(self) -> Mapping[str, dict[str, Any]]:
        return self._journal.shards

    def require(self, needed_bytes: int) -> None:
        """Raise ResourceError when the disk has less free space than this."""
        with disk_errors(self.folder):
            free_bytes = shutil.disk_usage(self.folder).free
        if free_bytes < needed_bytes:
            raise ResourceError(
                f"{needed_bytes:,} bytes needed, the small files included, {free_bytes:,} free on "
                "its disk; free some space or choose another disk",
                file=self._destination,
            )

    def record(self, shard: str, entry: Mapping[str, object]) -> None:
        """Remember a shard of `folder` that is whole; the next run will not make it again.

        Args:
            entry: JSON, holding the file's `sha256` in hex.
        """
        assert is_ours(shard) and "sha256" in entry
        self._journal.record(shard, entry)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file of the result in one step."""
        assert is_ours(name), f"{name} would be in the way of the next run"
        write_file(self.folder / name, data)

    def finish(self) -> None:
        """Give the folder its final name, replacing an earlier result if that was asked for."""
        assert (self.folder / REPORT).exists(), "what makes it a result is written last"
        with disk_errors(self._destination):
            replaces = self._check_destination()
            sync_folder(self.folder)
            if replaces:
                self._journal.set_replacing(True)
                os.rename(self._destination, self._replaced)
            os.rename(self.folder, self._destination)
            sync_folder(self._destination.parent)
        self._is_finished = True
        self._clear(replaces)

    def _clear(self, replaced: bool) -> None:
        """Remove what the finished result has no use for; a failure is not the conversion's."""
        leftover = self._replaced
        try:
            if replaced:
                _remove_folder(leftover)
            leftover = self._journal_file
            self._journal.remove()
        except (OSError, OptionError) as cause:
            reason = cause.strerror if isinstance(cause, OSError) else cause
            warnings.warn(
                f"{self._destination} is finished, but {leftover} could not be removed: {reason}; "
                "the next conversion to this destination tries again",
                GLMWarning,
                stacklevel=4,
            )

    def _beside(self, suffix: str) -> Path:
        return self._destination.parent / f"{self._destination.name}{suffix}"

    def _check_place(self) -> None:
        """Raise OptionError where no folder of this name may ever be made."""
        destination = self._destination
        for place in (destination, self.folder, self._replaced):
            if _holds(self._source, place) or _holds(place, self._source):
                raise OptionError(
                    f"{quote(str(place))} and the source {quote(str(self._source))} are one "
                    "folder or one inside the other; choose a destination apart from the source",
                    field="destination",
                )
        with suppress(FileNotFoundError):  # a working folder that is gone is nowhere
            if _holds(destination, Path(os.getcwd())):
                raise self._refusal(
                    "is the working folder or holds it, and would be another one at the end; "
                    "choose another destination"
                )
        if os.path.ismount(destination):
            raise self._refusal(
                "is a mounted volume, which no folder can replace; name a folder inside it"
            )
        with self._creating(), suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(self.folder / f"{INDEX}{PART}")  # the longest name there will be
        with self._creating(), suppress(FileNotFoundError):
            alike = [
                name
                for name in os.listdir(destination.parent)
                if _fold(name) == _fold(destination.name)
                and _compose(name) != _compose(destination.name)
            ]
            if alike:
                raise self._refusal(
                    f"differs only in case from {join(sorted(alike))}, which is the same folder "
                    "on a Mac; use that name or another"
                )

    def _check_destination(self) -> bool:
        """Return whether a finished result stands there and is to be replaced."""
        try:
            names = os.listdir(self._destination)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            raise self._refusal("is a file; choose another destination") from None
        if not names:  # rename takes the place of an empty folder
            return False
        others = strangers_in_result(self._destination)
        if others is None:
            raise self._refusal(
                "is not empty and no conversion of ours, so it is never replaced; "
                "choose another destination"
            )
        if not self._overwrite:
            raise self._refusal(
                "holds a finished conversion; choose another destination, or give --overwrite"
            )
        if others:
            raise self._refusal(_not_made_here(others))
        if os.path.lexists(self._replaced):
            raise self._refusal(
                f"cannot be replaced while {quote(self._replaced.name)} stands beside it; "
                "move that away"
            )
        return True

    def _repair(self) -> None:
        """End what a crash left between two renames: the old result or the new one, not both."""
        if not self._journal.replacing:
            return
        if os.path.lexists(self._replaced):
            if not os.path.lexists(self._destination):
                os.rename(self._replaced, self._destination)
                sync_folder(self._destination.parent)
            elif not os.path.lexists(self.folder):
                with disk_errors(self._replaced):
                    _remove_folder(self._replaced)
        self._journal.set_replacing(False)

    def _check_unfinished(self) -> bool:
        """Return whether an unfinished folder is there, which may be continued or started over."""
        journal = self._journal
        if not os.path.lexists(self.folder):
            if journal.is_foreign:
                raise OptionError(
                    "is not the journal of a conversion; move it away or choose another "
                    "destination",
                    file=self._journal_file,
                )
            return False
        if self.folder.is_symlink() or not self.folder.is_dir():
            raise OptionError(
                "exists and is no folder; move it away or choose another destination",
                file=self.folder,
            )
        if others := strangers(self.folder):
            raise OptionError(_not_made_here(others), file=self.folder, field="destination")
        is_blank = not os.listdir(self.folder) and not journal.is_foreign
        is_empty_handed = journal.fingerprint is not None and not journal.shards
        is_same = journal.fingerprint == self._fingerprint
        if is_blank or is_empty_handed or is_same or self._overwrite:
            return True
        if journal.fingerprint is None:
            found = "is damaged" if self._had_journal else "is missing"
            raise OptionError(
                f"cannot be continued, as its journal {quote(self._journal_file.name)} {found}; "
                "give --overwrite to start over, or choose another destination",
                file=self.folder,
                field="overwrite",
            )
        raise OptionError(
            "holds an unfinished conversion of another source or other settings; give those to "
            "continue it, --overwrite to start over, or choose another destination",
            file=self.folder,
            field="overwrite",
        )

    def _open_folder(self) -> None:
        """Make the folder, or keep what an earlier run recorded and remove the rest."""
        is_there = self._check_unfinished()
        if is_there and self._journal.fingerprint == self._fingerprint:
            self._journal.go_on()
        else:  # first, since with a journal of its own the rest can be removed by any later run
            self._journal.start(self._fingerprint)
        if is_there:
            self._keep_what_holds()
        else:
            with self._creating():
                os.mkdir(self.folder)

    def _keep_what_holds(self) -> None:
        shards = self._journal.shards
        names = set(os.listdir(self.folder))
        for name, entry in list(shards.items()):
            if name not in names or _sha256(self.folder / name) != entry["sha256"]:
                del shards[name]
        for name in sorted(names - shards.keys()):
            os.unlink(self.folder / name)

    def _remove_traces(self) -> None:
        """Leave nothing where nothing was made."""
        if self._journal.fingerprint is not None:
            with suppress(FileNotFoundError):
                os.rmdir(self.folder)  # which only an empty folder lets be done to it
        elif self._had_journal and (self._journal.is_foreign or os.path.lexists(self.folder)):
            return  # it was refused as it is, and so it stays
        self._journal.remove()

    @contextmanager
    def _creating(self) -> Iterator[None]:
        """Turn the errors of a place where no folder can be made into an OptionError."""
        try:
            yield
        except OSError as cause:
            if cause.errno not in _PLACE_IS_WRONG:
                raise
            raise self._refusal(
                f"cannot be created: {cause.strerror}; choose another destination"
            ) from cause

    def _refusal(self, found: str) -> OptionError:
        return OptionError(found, file=self._destination, field="destination")


def _absolute(path: Path) -> Path:
    try:
        return Path(os.path.realpath(path))
    except FileNotFoundError as cause:
        raise OptionError(
            "the working folder is gone; change to one that exists", file=path, field="destination"
        ) from cause


def _holds(outer: Path, inner: Path) -> bool:
    """Whether `inner` is `outer` or lies inside it, however either is spelled."""
    return any(_is_same(outer, place) for place in (inner, *inner.parents))


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return one == other


def _compose(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _fold(name: str) -> str:
    return _compose(_compose(name).casefold())


def _not_made_here(names: list[str]) -> str:
    return (
        f"holds {join(names)}, which no conversion wrote and none removes; move that away or "
        "choose another destination"
    )


def _remove_folder(folder: Path) -> None:
    """Remove a folder of files that are all ours; another one stays as it is."""
    if others := strangers(folder):
        raise OptionError(_not_made_here(others), file=folder, field="destination")
    for name in sorted(os.listdir(folder)):
        os.unlink(folder / name)
    os.rmdir(folder)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        position = 0
        while block := os.pread(descriptor, _BLOCK_BYTES, position):
            digest.update(block)
            position += len(block)
    finally:
        os.close(descriptor)
    return digest.hexdigest()
