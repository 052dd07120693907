"""A name that can be a path never reaches the Hub; what goes wrong there is said in one line.

Uploads ask nothing and send the card last; metadata of cards survives a round trip.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import hf_raise_for_status
from hypothesis import given
from hypothesis import strategies as st

from glm_mlx.errors import (
    GLMError,
    GLMWarning,
    HubError,
    InputFileError,
    OptionError,
    ResourceError,
)
from glm_mlx.hub import is_hub_id, origin, read_metadata, resolve, upload, write_metadata

REPO = "zai-org/GLM-4-9B-0414"
Fetch = Callable[..., str]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, and a Hub that fails the test when asked."""

    def unexpected(*args: object, **options: object) -> str:
        raise AssertionError(f"the Hub was asked for {args} {options}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unexpected)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fetch], None]:
    """Put a function in the place of the Hub."""
    return lambda fetch: monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)


def test_local_folder_however_written(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nowhere / "owner" / "name"
    folder.mkdir(parents=True)
    (nowhere / "link").symlink_to(folder)
    monkeypatch.setenv("HOME", str(nowhere))
    for name in ("owner/name", "./owner/name", "owner/name/", str(folder), "~/owner/name", "link"):
        assert resolve(name).samefile(folder), name
        assert resolve(Path(name)).samefile(folder), name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./absent", "no such folder"),
        ("../absent/name", "no such folder"),
        ("~/absent", "no such folder"),
        ("/absent/name", "no such folder"),
        ("a/b/c", "no such folder"),
        ("owner/name/", "no such folder"),
        ("C:\\models\\glm", "no such folder"),
        ("models/glm", "no such folder"),
        (Path("owner/name"), "no such folder"),
        ("file", "is a file; give the folder"),
        ("models/file", "is a file; give the folder"),
        ("broken", "is a link to nothing"),
        ("glm-4", "neither a folder here nor an owner/name on the Hub"),
        ("own er/name", "neither a folder"),
        ("owner/na..me", "neither a folder"),
        ("owner/-name", "neither a folder"),
        ("所有者/模型", "neither a folder"),
        ("owner/" + "x" * 97, "neither a folder"),
        ("x" * 5000, "neither a folder"),
    ],
    ids=str,
)
def test_what_can_only_be_a_path_is_never_asked_for(
    nowhere: Path, name: str | Path, said: str
) -> None:
    (nowhere / "models").mkdir()
    (nowhere / "models" / "file").touch()
    (nowhere / "file").touch()
    (nowhere / "broken").symlink_to("gone")
    with pytest.raises(InputFileError) as caught:
        resolve(name)
    assert said in str(caught.value)
    assert str(name).rstrip("/") in str(caught.value)
    assert caught.value.exit_code == 3


def test_unreadable_folder(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputFileError, match=r"closed.*not readable; check its permissions"):
        resolve("closed")


@pytest.mark.parametrize(
    "name", ["", "  ", "a\0b", "~\0", "owner/na\0me", "~\ud800", None, 5, b"x"]
)
def test_names_of_nothing(name: object) -> None:
    with pytest.raises(OptionError, match="expected a folder or owner/name"):
        resolve(name)  # type: ignore[arg-type]


def test_revision_of_a_local_folder(nowhere: Path) -> None:
    with pytest.raises(OptionError, match="revision 'main' applies to Hub repositories"):
        resolve(nowhere, revision="main")


@given(st.text())
def test_any_text_is_a_folder_or_an_error_of_ours(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: "fetched")
        try:
            found = resolve(name)
        except GLMError:
            return
    assert found.is_dir() or found == Path("fetched")


def test_hub_id_is_fetched_without_code_and_subfolders(hub: Callable[[Fetch], None]) -> None:
    asked: dict[str, Any] = {}

    def fetch(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return "/cache/snapshot"

    hub(fetch)
    assert resolve(REPO, revision="abc") == Path("/cache/snapshot")
    assert (asked["repo"], asked["revision"]) == (REPO, "abc")
    wanted = set(
        huggingface_hub.utils.filter_repo_objects(
            ["config.json", "model-00001-of-00004.safetensors", "chat_template.jinja",
             "tokenizer.model", "merges.txt", "modeling_chatglm.py", "pytorch_model.bin",
             "checkpoint-500/model.safetensors", "model.gguf", "README.md", "LICENSE"],
            allow_patterns=asked["allow_patterns"],
            ignore_patterns=asked["ignore_patterns"],
        )
    )  # fmt: skip
    assert wanted == {
        "config.json", "model-00001-of-00004.safetensors", "chat_template.jinja",
        "tokenizer.model", "merges.txt", "README.md", "LICENSE",
    }  # fmt: skip


def http_error(status: int, code: str = "") -> Exception:
    """The error huggingface_hub itself makes of such an answer."""
    http = pytest.importorskip(hub_errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0])
    request = http.Request("GET", f"https://huggingface.co/api/models/{REPO}/revision/main")
    response = http.Response(status, request=request, headers={"X-Error-Code": code})
    with pytest.raises(hub_errors.HfHubHTTPError) as caught:
        hf_raise_for_status(response)
    return caught.value


def not_cached(cause: Exception | None = None) -> Exception:
    error = hub_errors.LocalEntryNotFoundError("Cannot find\nan appropriate snapshot folder")
    error.__cause__ = cause
    return error


FAILURES: list[tuple[Callable[[], Exception], str]] = [
    (lambda: http_error(404, "RepoNotFound"), "no such folder here and no such public repository"),
    (lambda: http_error(401), "run: hf auth login"),
    (lambda: http_error(403, "GatedRepo"), f"accept its terms at https://huggingface.co/{REPO}"),
    (lambda: http_error(404, "RevisionNotFound"), "has no revision 'v9'"),
    (lambda: http_error(429), "HTTP status 429"),
    (lambda: not_cached(http_error(503)), "HTTP status 503 (what was fetched is kept"),
    (not_cached, "the Hub cannot be reached and the cache holds no copy"),
    (lambda: not_cached(hub_errors.OfflineModeIsEnabled("x")), "HF_HUB_OFFLINE is set"),
    (lambda: ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
    (lambda: TimeoutError(), "the download failed: TimeoutError"),
    (lambda: RuntimeError("first line\nsecond line"), "the download failed: first line"),
]


@pytest.mark.parametrize(("make", "said"), FAILURES, ids=[said[:24] for _, said in FAILURES])
def test_failures_are_explained(
    hub: Callable[[Fetch], None], make: Callable[[], Exception], said: str
) -> None:
    def fetch(*_: object, **__: object) -> str:
        raise make()

    hub(fetch)
    with pytest.raises(HubError) as caught:
        resolve(REPO, revision="v9")
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{REPO}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("wrapped", [False, True])
def test_full_disk(hub: Callable[[Fetch], None], number: int, wrapped: bool) -> None:
    full = OSError(number, "No space left on device")

    def fetch(*_: object, **__: object) -> str:
        if wrapped:
            raise RuntimeError("a worker failed") from full
        raise full

    hub(fetch)
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        resolve(REPO)
    assert caught.value.exit_code == 4


def test_offline_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real huggingface_hub, which then must not need a network
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        HubError, match="HF_HUB_OFFLINE is set and the cache holds no complete copy"
    ):
        resolve(REPO)
    repository = tmp_path / ("models--" + REPO.replace("/", "--"))
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert resolve(REPO).samefile(snapshot)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        resolve(REPO, revision="v9")


def test_interrupt_passes(hub: Callable[[Fetch], None]) -> None:
    def fetch(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    hub(fetch)
    with pytest.raises(KeyboardInterrupt):
        resolve(REPO)


def test_the_cache_tells_where_a_folder_is_from(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshots = tmp_path / "models--zai-org--GLM-4-9B-0414" / "snapshots"
    assert origin(snapshots / commit) == (REPO, commit)
    for other in (snapshots / "main", snapshots, tmp_path / commit, Path("/"), Path()):
        assert origin(other) is None, other
    assert origin(tmp_path / "datasets" / "snapshots" / commit) is None


@pytest.mark.parametrize(
    ("name", "expected"), [(REPO, True), ("GLM-4", False), ("a/b/c", False), ("a/b--c", False)]
)
def test_what_a_repository_may_be_called(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected


class FakeHub:
    """Stands for `HfApi`: remembers what it was asked, fails where it is told to."""

    def __init__(self, *, private: bool = False, fails: Callable[[], Exception] | None = None):
        self.private, self.fails = private, fails
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo: str, **options: Any) -> str:
        self.asked.append(("create_repo", options))
        return f"https://huggingface.co/{repo}"

    def model_info(self, repo: str) -> FakeHub:
        return self

    def upload_folder(self, **options: Any) -> None:
        if self.fails:
            raise self.fails()
        self.asked.append(("upload_folder", options))

    def upload_file(self, **options: Any) -> None:
        self.asked.append(("upload_file", options))


def send(
    monkeypatch: pytest.MonkeyPatch, fake: FakeHub, folder: Path, *, private: bool = False
) -> str:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    files = ["README.md", "config.json", "model[1].safetensors"]
    return upload(folder, REPO, files=files, card="# Card", private=private)


def test_an_upload_sends_what_is_named_and_the_card_last(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub()
    assert send(monkeypatch, fake, nowhere) == f"https://huggingface.co/{REPO}"
    (first, made), (second, sent), (third, card) = fake.asked
    assert (first, second, third) == ("create_repo", "upload_folder", "upload_file")
    assert made == {"private": None, "exist_ok": True}
    assert (sent["repo_id"], sent["folder_path"]) == (REPO, nowhere)
    names = ["config.json", "model[1].safetensors", "README.md", "other.json"]
    chosen = huggingface_hub.utils.filter_repo_objects(names, allow_patterns=sent["allow_patterns"])
    assert list(chosen) == names[:2]
    assert card == {"repo_id": REPO, "path_or_fileobj": b"# Card", "path_in_repo": "README.md"}


def test_a_private_upload_never_lands_in_a_public_repository(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub(private=False)
    with pytest.raises(OptionError, match=f"{REPO} is there and public"):
        send(monkeypatch, fake, nowhere, private=True)
    assert fake.asked == [("create_repo", {"private": True, "exist_ok": True})]
    assert send(monkeypatch, FakeHub(private=True), nowhere, private=True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: http_error(404, "RepoNotFound"), "the Hub has no such owner"),
        (
            lambda: http_error(403),
            "the Hub answered with HTTP status 403 (log in with an account that may write it",
        ),
        (lambda: http_error(503), "the Hub answered with HTTP status 503 (what was sent is kept"),
        (lambda: hub_errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set (unset it to upload"),
        (lambda: ConnectionResetError(104, "Connection reset"), "the upload failed: [Errno 104]"),
    ],
)
def test_failed_uploads_are_explained(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Exception], said: str
) -> None:
    with pytest.raises(HubError) as caught:
        send(monkeypatch, FakeHub(fails=make), nowhere)
    assert str(caught.value).startswith(f"{REPO}: {said}")


def test_metadata_is_read_as_it_was_written() -> None:
    data = {"license": "other", "license_name": "glm-4", "language": ["zh", "en"], "tags": ["mlx"]}
    card = write_metadata(data) + "\n# A model\n"
    assert read_metadata(card, file="README.md") == data
    assert read_metadata("\ufeff\n" + card, file="README.md") == data


@pytest.mark.parametrize("card", ["", "# A model", "text\n---\nlicense: mit\n---\n"])
def test_a_card_without_metadata_says_nothing(card: str) -> None:
    assert read_metadata(card, file="README.md") == {}


@pytest.mark.parametrize("block", ["a: [", "- list", "!!python/object:os.system {}", "a: b: c"])
def test_unreadable_metadata_is_a_warning(block: str) -> None:
    with pytest.warns(GLMWarning, match=r"^here/README.md: its metadata is ignored: "):
        assert read_metadata(f"---\n{block}\n---\n", file="here/README.md") == {}


@pytest.mark.parametrize(
    ("card", "warned"),
    [
        ("---\nlicense: mit\n", "no line --- closes it"),
        ("---\nlicense: mit\n---x\n# Model\n", "no line --- closes it"),
        ("---\nlicense: mit\nmodel-index: 5\n---\n", ""),
    ],
)
def test_metadata_that_is_odd_leaves_no_word_of_the_library(
    card: str, warned: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_metadata(card, file="README.md")
    assert [str(one.message) for one in caught] == (
        [f"README.md: its metadata is ignored: {warned}"] if warned else []
    )
    assert found.get("license") == (None if warned else "mit")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
