"""Every file of a model folder that is read whole: its own regular file, or a refusal by name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from makers.vocabulary import write_tokenizer

from glm_mlx.config import read_config, read_generation_config
from glm_mlx.errors import ConfigError, InputFileError, TemplateError, TokenizerError
from glm_mlx.modelfile import find_file, own_file, read_file
from glm_mlx.text import Tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder, vocab_size=352, family="glm4")


Reader = Callable[[Path], object]
READERS: dict[str, tuple[Reader, type[InputFileError]]] = {
    "config.json": (read_config, ConfigError),
    "generation_config.json": (read_generation_config, ConfigError),
    "tokenizer.json": (read_tokenizer, TokenizerError),
    "tokenizer.model": (read_tokenizer, TokenizerError),
    "tokenizer_config.json": (read_tokenizer, TokenizerError),
    "chat_template.jinja": (read_tokenizer, TemplateError),
}
ODD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "link out": (lambda file: file.symlink_to("../private"), "is a link out of the folder, to "),
    "device": (lambda file: file.symlink_to("/dev/zero"), "out of the folder, to '/dev/zero'; put"),
    "dangling": (lambda file: file.symlink_to("gone"), "is a link to nothing; put the file itself"),
    "loop": (lambda file: file.symlink_to(file.name), "cannot be read: "),
    "FIFO": (os.mkfifo, "is a special file, not a regular file; put the file itself here"),
    "folder": (Path.mkdir, "is a folder, not a regular file; put the file itself here"),
}


@pytest.fixture
def folder(make_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A model folder with each file of `READERS`, and a private file beside it."""
    folder = tmp_path / "model"
    shutil.copytree(make_folder("glm4"), folder)
    write_tokenizer(folder, "chatglm", "{{ messages[0].content }}")
    write_tokenizer(folder, "glm4", "{{ messages[0].content }}")
    (folder / "generation_config.json").write_text("{}")
    (tmp_path / "private").write_text("{}")
    return folder


@pytest.mark.timeout(20)  # opening a FIFO blocks for ever
@pytest.mark.parametrize("odd", ODD_FILES)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_of_the_folder_is_named(folder: Path, name: str, odd: str) -> None:
    read, error = READERS[name]
    make, said = ODD_FILES[odd]
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()  # the one of the two that is read
    read(folder)
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(error) as caught:
        read(folder)
    assert type(caught.value) is error
    assert caught.value.file == str(folder / name)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_folder_without_a_file_has_none(tmp_path: Path) -> None:
    assert find_file(tmp_path, "x.json", error=ConfigError) is None
    assert find_file(tmp_path / "absent", "x.json", error=ConfigError) is None
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory; check"):
        own_file(tmp_path, "x.json", error=ConfigError)


def test_links_in_the_folder_and_in_the_hub_cache(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = (tmp_path / "models--glm" / name for name in ("snapshots/0123", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in READERS:
        (folder / name).rename(blobs / f"blob of {name}")
        (snapshot / name).symlink_to(f"../../blobs/blob of {name}")
        shutil.copy(blobs / f"blob of {name}", folder / f"my {name}")
        (folder / name).symlink_to(f"my {name}")
    (tmp_path / "link").symlink_to(folder)
    for read, _ in READERS.values():
        for place in (snapshot, folder, tmp_path / "link"):
            read(place)


def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_bytes(b"MIT\r\n")
    assert read_file(tmp_path, "LICENSE", error=ConfigError, max_bytes=5) == b"MIT\r\n"
    assert read_file(tmp_path, "NOTICE", error=ConfigError, max_bytes=5) is None
    with pytest.raises(ConfigError, match="LICENSE: is larger than 4 bytes"):
        read_file(tmp_path, "LICENSE", error=ConfigError, max_bytes=4)
