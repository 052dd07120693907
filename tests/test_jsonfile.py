"""JSON from strangers: what is valid comes through, anything else is refused by file and place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_mlx.errors import ConfigError, TokenizerError
from glm_mlx.jsonfile import MAX_BYTES, parse_json, read_json, read_json_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)  # fmt: skip


@given(VALUES, st.booleans(), st.booleans())
def test_valid_json_comes_through(value: object, marked: bool, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    raw = (b"\xef\xbb\xbf" if marked else b"") + text.encode("utf-8", "surrogatepass")
    if not ascii_only and any("\ud800" <= char <= "\udfff" for char in text):
        with pytest.raises(ConfigError, match="not UTF-8"):
            parse_json(raw, file="x.json", error=ConfigError)
    else:
        assert parse_json(raw, file="x.json", error=ConfigError) == value


@given(st.binary(max_size=60))
def test_bytes_parse_or_are_refused_in_one_line(raw: bytes) -> None:
    said = ""
    try:
        parse_json(raw, file="x.json", error=ConfigError)
    except ConfigError as error:
        said = str(error)
    assert not said or said.startswith("x.json: ")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b'{"a": 1', "line 1, column 8"),
        (b"{} trailing", "Extra data at line 1, column 4"),
        (b'{\n"a": "\xff"}', "not UTF-8: byte 0xff at line 2"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"x": {"a": 1, "b": 2, "a": 3}}', "key 'a' appears twice"),
        (b'{"a": NaN}', "NaN is not finite"),
        (b"[-Infinity]", "-Infinity is not finite"),
        (b"[1e999]", "1e999 is not finite"),
        (b"[" + b"9" * 5000 + b"]", "too many digits"),
        (b"[" * 101 + b"]" * 101, "more than 100 levels"),
        (b"[" * 200_000, "more than 100 levels"),
        (b'{"a":' * 200_000, "more than 100 levels"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_refusals_say_what_and_where(raw: bytes, said: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        parse_json(raw, file="folder/x.json", error=TokenizerError)
    assert str(caught.value).startswith("folder/x.json: ")
    assert said in str(caught.value)
    assert caught.value.file == "folder/x.json"


def test_depth_counts_containers_only() -> None:
    raw = b"[" * 100 + b"1" + b"]" * 100
    value = parse_json(raw, file="x", error=ConfigError)
    for _ in range(100):
        assert isinstance(value, list)
        (value,) = value
    assert value == 1


def test_only_a_regular_file_of_bounded_size_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    large = tmp_path / "large.json"
    with large.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    for path, said in [
        (tmp_path / "absent.json", "file not found"),
        (tmp_path, "is a folder"),
        (pipe, "is a special file"),
        (large, "larger than 10,485,760 bytes"),
        (Path(tmp_path / ("x" * 300)), "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=said) as caught:
            read_json(path, error=ConfigError)
        assert str(path) in str(caught.value)


def test_size_limit_is_inclusive(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"[1,2]")
    assert read_json(path, error=ConfigError, max_bytes=5) == [1, 2]
    with pytest.raises(ConfigError, match="larger than 4 bytes"):
        read_json(path, error=ConfigError, max_bytes=4)


def test_unreadable_file_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        read_json(path, error=ConfigError)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[1]", "a list"),
        ('"x"', "a string"),
        ("null", "null"),
        ("true", "a boolean"),
        ("1", "a number"),
    ],
)
def test_object_wanted(tmp_path: Path, text: str, found: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"holds {found}; expected a JSON object"):
        read_json_object(path, error=ConfigError)
