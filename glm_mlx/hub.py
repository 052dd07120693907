"""A path or a Hub id to a local model folder, and a folder to the Hub; what knows the network.

Knows nothing of what the folder holds, but that code in it is of no use here and is not fetched.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from glm_mlx.errors import (
    GLMError,
    GLMWarning,
    HubError,
    InputFileError,
    OptionError,
    ResourceError,
)

CARD = "README.md"
# Top level only: training checkpoints in subfolders would multiply the download.
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", CARD, "LICENSE*")
_UNWANTED = ("*/*",)
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_ID = re.compile(rf"(?!.*(?:--|\.\.)){_NAME}/{_NAME}")

_METADATA = re.compile(r"---[\r\n]+[\s\S]*?[\r\n]+---(?:[\r\n]|$)")  # as huggingface_hub has it
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# Class name in huggingface_hub.errors, most telling first: what it means, what to do. By name,
# since the classes' own bases moved between its releases.
_REASONS = {
    "GatedRepoError": (
        "access to this repository is gated",
        "accept its terms at https://huggingface.co/{repo}, then run: hf auth login",
    ),
    "RepositoryNotFoundError": (
        "no such folder here and no such public repository on the Hub",
        "check the name; for a private repository run: hf auth login",
    ),
    "RevisionNotFoundError": (
        "the repository has no revision {revision!r}",
        "give a branch, a tag or a full commit hash that it has",
    ),
    "DisabledRepoError": ("the Hub disabled this repository", "use another one"),
    "OfflineModeIsEnabled": (
        "HF_HUB_OFFLINE is set and the cache holds no complete copy",
        "unset it, or give a local folder",
    ),
    "IncompleteSnapshotError": (
        "the Hub cannot be reached and the copy in the cache is incomplete",
        "connect to finish the download",
    ),
}
_REASONS_SENDING = _REASONS | {
    "RepositoryNotFoundError": (
        "the Hub has no such owner, or none that you may write for",
        "check the name, then run: hf auth login",
    ),
    "OfflineModeIsEnabled": ("HF_HUB_OFFLINE is set", "unset it to upload"),
}


def resolve(path_or_repo: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder of a model, downloading it only if it must be one on the Hub.

    A `Path`, and a string that exists or can only be a path, is never looked up on the Hub. What
    is in the Hub's cache is used when the network is down.

    Args:
        path_or_repo: a folder, or `owner/name` of a Hugging Face repository.
        revision: branch, tag or commit of the repository; None is its main branch.

    Raises:
        InputFileError: the folder is absent, a file, or not readable.
        HubError: the repository cannot be fetched.
        ResourceError: the disk is full.
        OptionError: an argument makes no sense.
    """
    path = local_path(path_or_repo, field="model", expected="a folder or owner/name")
    if revision is not None and (not isinstance(revision, str) or not revision.strip()):
        raise OptionError(
            f"revision is {revision!a}; expected a branch, tag or commit", field="revision"
        )
    name = os.fspath(path_or_repo)
    if os.path.lexists(path):
        if revision is not None:
            raise OptionError(
                f"revision {revision!r} applies to Hub repositories; {name} is a local path",
                field="revision",
            )
        return _readable_folder(path)
    if isinstance(path_or_repo, Path) or _only_a_path(name):
        raise InputFileError("no such folder", file=name, hint="check the path of the model")
    if not _HUB_ID.fullmatch(name):
        raise InputFileError("neither a folder here nor an owner/name on the Hub", file=name)
    return _download(name, revision)


def local_path(value: object, *, field: str, expected: str = "a path") -> Path:
    """Return a path with a leading `~` written out, whether or not anything is there.

    Raises:
        OptionError: naming `field`; no path of this machine can be called so, or there is no user
            of the name behind `~`.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    try:
        raw = os.fsencode(text) if isinstance(text, str) else b""
    except UnicodeEncodeError:  # half a surrogate pair
        raw = b""
    if not isinstance(text, str) or not raw.strip() or b"\0" in raw:
        raise OptionError(f"{field} is {value!a}; expected {expected}", field=field)
    path = os.path.expanduser(text)
    if path.startswith("~") and not os.path.lexists(path):
        raise OptionError(f"{field} is {text!r:.120}, the home of no user here", field=field)
    return Path(path)


def _readable_folder(path: Path) -> Path:
    if not path.exists():
        raise InputFileError("is a link to nothing", file=path)
    if not path.is_dir():
        raise InputFileError("is a file; give the folder that holds config.json", file=path)
    if not os.access(path, os.R_OK | os.X_OK):
        raise InputFileError("this folder is not readable; check its permissions", file=path)
    return path


def _only_a_path(name: str) -> bool:
    """Whether a name that is not there cannot be meant for the Hub."""
    if name.startswith((".", "~")) or os.path.isabs(name) or "\\" in name or name.count("/") > 1:
        return True
    parent, slash, _ = name.rpartition("/")
    return bool(slash) and os.path.isdir(parent)


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    with _explaining(repo, revision=revision):
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_UNWANTED),
        )
    return Path(folder)


def origin(folder: Path) -> tuple[str, str] | None:
    """Return the repository and the commit that a folder of the Hub's cache is a copy of."""
    path = Path(os.path.abspath(folder))
    if path.parent.name != "snapshots" or not _COMMIT.fullmatch(path.name):
        return None
    repo = path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return (repo, path.name) if is_hub_id(repo) else None


def is_hub_id(name: str) -> bool:
    """Whether a repository may be called so: `owner/name`."""
    return _HUB_ID.fullmatch(name) is not None


def read_metadata(card: str, *, file: object) -> dict[str, Any]:
    """Return what the YAML block at the head of a model card says; nothing if there is none.

    A block that cannot be read gets a warning that names `file`, and says nothing.
    """
    card = card.lstrip("\ufeff \r\n")
    if not card.startswith("---"):
        return {}
    from huggingface_hub import ModelCard

    try:
        if not _METADATA.match(card):
            raise ValueError("no line --- closes it")
        with _silent("huggingface_hub"):
            return dict(ModelCard(card, ignore_metadata_errors=True).data.to_dict())
    except Exception as cause:  # the parser behind that class is not ours to name
        said = " ".join(str(cause).split())
        warnings.warn(f"{file}: its metadata is ignored: {said:.200}", GLMWarning, stacklevel=2)
        return {}


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a package's own words off stderr."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def write_metadata(data: Mapping[str, Any]) -> str:
    """Return the YAML block for the head of a model card, fences included."""
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(**data).to_yaml()}\n---\n"


def upload(folder: Path, repo: str, *, files: Iterable[str], card: str, private: bool) -> str:
    """Send files of a folder to a repository, made if there is none, and return its address.

    Asks nothing: the account is that of `hf auth login` or of HF_TOKEN. A second call goes on
    where the first was cut off. The card comes last, in place of README.md.

    Raises:
        HubError: the Hub cannot be reached or refuses.
        OptionError: `private` was asked for and the repository is there and public.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    with _explaining(repo, sending=True):
        address = str(hub.create_repo(repo, private=private or None, exist_ok=True))
        if private and not hub.model_info(repo).private:
            raise OptionError(
                f"{repo} is there and public; make it private on its settings page, or choose "
                "another name",
                field="private",
            )
        names = [escape(name) for name in files if name != CARD]
        hub.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=names)
        hub.upload_file(repo_id=repo, path_or_fileobj=card.encode(), path_in_repo=CARD)
    return address


@contextmanager
def _explaining(repo: str, *, revision: str | None = None, sending: bool = False) -> Iterator[None]:
    """Let errors of huggingface_hub, and of all beneath it, leave as ours."""
    try:
        yield
    except GLMError:
        raise
    except Exception as cause:  # whatever HTTP, TLS or storage layer it came from
        raise _explained(cause, repo, revision, sending=sending) from cause


def _explained(error: Exception, repo: str, revision: str | None, *, sending: bool) -> GLMError:
    """The error of ours that says what a failed download or upload means."""
    chain = list(_causes(error))
    if any(isinstance(one, OSError) and one.errno in _DISK_FULL for one in chain):
        return ResourceError(
            "the disk is full; what was fetched is kept", file=repo, hint="free space and run again"
        )
    what, kept = ("upload", "sent") if sending else ("download", "fetched")
    later = f"what was {kept} is kept; try again later"
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    for name, (meaning, hint) in (_REASONS_SENDING if sending else _REASONS).items():
        if name in names:
            fill = {"repo": repo, "revision": revision}
            return HubError(meaning.format(**fill), file=repo, hint=hint.format(**fill))
    statuses = [getattr(getattr(one, "response", None), "status_code", None) for one in chain]
    if status := next(filter(None, statuses), None):
        account = f"log in with an account that may {'write' if sending else 'read'} it"
        hint = f"{account}: hf auth login" if status in (401, 403) else later
        return HubError(f"the Hub answered with HTTP status {status}", file=repo, hint=hint)
    if "LocalEntryNotFoundError" in names:
        return HubError(
            "the Hub cannot be reached and the cache holds no copy",
            file=repo,
            hint="check the connection, or give a local folder",
        )
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return HubError(f"the {what} failed: {said}", file=repo, hint=later)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
