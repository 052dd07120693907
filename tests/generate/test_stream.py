"""Text from ids: exact joins, stop strings wherever they fall, and what the last chunk tells."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers.streams import random_case

from glm_mlx.errors import OptionError
from glm_mlx.generate.engine import Generation, Usage
from glm_mlx.generate.sampling import Sampling
from glm_mlx.generate.stream import Chunk, StopScanner, Timings, checked_stops, stream_text
from glm_mlx.text.detokenizer import Detokenizer


def words(id: int) -> bytes:
    """`a` to `z`, then bytes of a character of three."""
    return bytes([97 + id]) if id < 26 else "中".encode()[id % 3 : id % 3 + 1]


def reply(
    scripted: Any, prompt: Sequence[int] = (0,), max_tokens: int = 8, **options: Any
) -> list[Chunk]:
    model = scripted.Model()
    stop_ids = options.pop("stop_ids", ())
    generation = Generation(
        model, prompt, Sampling(temperature=0), stop_ids=stop_ids, max_tokens=max_tokens
    )
    stream = stream_text(generation, Detokenizer(words), **options)
    return [chunk for chunk in stream if chunk is not None]


def text(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


@pytest.mark.parametrize("seed", range(60))
def test_stream_joined_is_one_shot_text(seed: int) -> None:
    case = random_case(random.Random(seed))
    assert case.streamed() == case.one_shot()


stop_lists = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


@given(st.lists(st.text("ab", max_size=3)), stop_lists)
def test_scanner_is_blind_to_how_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    def scan(pieces: Sequence[str]) -> tuple[str, str | None]:
        scanner = StopScanner(stops)
        out = "".join([*map(scanner.push, pieces), scanner.finish()])
        return out, scanner.found

    whole = "".join(pieces)
    assert scan(pieces) == scan([whole]) == scan(whole)


@given(st.text("ab"), stop_lists)
def test_scanner_cuts_at_the_first_complete_stop(whole: str, stops: list[str]) -> None:
    scanner = StopScanner(stops)
    out = scanner.push(whole) + scanner.finish()
    ends = [n for n in range(len(whole) + 1) if whole[:n].endswith(tuple(stops))]
    if not ends:
        assert (out, scanner.found) == (whole, None)
    else:
        longest = max((s for s in stops if whole[: ends[0]].endswith(s)), key=len)
        assert (out, scanner.found) == (whole[: ends[0] - len(longest)], longest)


def test_scanner_holds_back_only_what_may_be_a_beginning() -> None:
    scanner = StopScanner(["stop!", "toe"])
    pieces = ["a st", "ar", "sto", "p", "s", "top", "!", "more"]
    given = [scanner.push(piece) for piece in pieces]
    assert given == ["a ", "star", "", "", "stop", "", "", ""]
    assert scanner.found == "stop!"


def test_last_chunk_tells_why_and_how_much(scripted: Any) -> None:
    *others, last = reply(scripted, max_tokens=3, prompt=[0, 1])
    assert [(chunk.text, chunk.token_ids) for chunk in others] == [
        ("c", (2,)),
        ("d", (3,)),
        ("e", (4,)),
    ]
    assert all(chunk == Chunk(chunk.text, chunk.token_ids) for chunk in others)
    assert (last.text, last.token_ids, last.finish_reason) == ("", (), "length")
    assert last.usage == Usage(prompt_tokens=2, completion_tokens=3, cached_tokens=0)
    assert isinstance(last.seed, int)


def test_stop_id_is_told_and_gives_no_text(scripted: Any) -> None:
    chunks = reply(scripted, stop_ids={4})
    assert text(chunks) == "bcd"
    assert (chunks[-1].finish_reason, chunks[-1].stop_id) == ("stop", 4)


@pytest.mark.parametrize("stops", [("e",), ("de",), ("bcde", "zz"), ("xe", "e", "f")])
def test_stop_string_across_tokens(stops: tuple[str, ...], scripted: Any) -> None:
    chunks = reply(scripted, stops=stops)
    last = chunks[-1]
    assert last.finish_reason == "stop"
    assert text(chunks) + (last.stop_string or "") == "bcde"
    assert last.usage is not None
    assert last.usage.completion_tokens == sum(len(chunk.token_ids) for chunk in chunks) == 4


def test_stop_string_inside_a_token() -> None:
    scanner = StopScanner(["\n"])
    assert scanner.push("one\n\ntwo") == "one"
    assert scanner.found == "\n"
    assert scanner.push("three") + scanner.finish() == ""


def test_text_held_back_comes_at_the_end(scripted: Any) -> None:
    chunks = reply(scripted, max_tokens=4, stops=("cdefg",))
    assert [chunk.text for chunk in chunks] == ["b", "", "", "", "cde"]
    assert chunks[-1].finish_reason == "length"


def test_cut_character_becomes_one_replacement(scripted: Any) -> None:
    chunks = reply(scripted, prompt=[26], max_tokens=4)
    assert text(chunks) == "中\ufffd"
    assert chunks[-1].text == "\ufffd"


def test_cancel_ends_between_tokens_and_keeps_the_text(scripted: Any) -> None:
    cancel = threading.Event()
    generation = Generation(scripted.Model(), [0], Sampling(temperature=0), max_tokens=100)
    stream = stream_text(generation, Detokenizer(words), stops=("cx",), cancel=cancel)
    chunks = [chunk for chunk in itertools.islice(stream, 4) if chunk is not None]
    cancel.set()
    chunks += [chunk for chunk in stream if chunk is not None]
    assert text(chunks) == "bc"
    assert chunks[-1].finish_reason == "cancelled"
    assert scripted.held_ids(generation.cache) == [0, 1, 2]


def test_cancel_during_prefill(scripted: Any) -> None:
    cancel = threading.Event()
    model = scripted.Model()
    generation = Generation(model, range(40), Sampling(), prefill_step_size=4)

    def on_prefill(done: int, total: int) -> None:
        if done == 12:
            cancel.set()

    stream = stream_text(generation, Detokenizer(words), cancel=cancel, on_prefill=on_prefill)
    *turns, last = stream
    assert set(turns) == {None}
    assert last is not None
    assert last.finish_reason == "cancelled"
    assert model.runs == [4, 4, 4]
    assert last.timings is not None
    assert (last.timings.prefill_tokens, last.timings.decode_tokens) == (12, 0)


def test_prefill_progress_is_told_and_may_fail(scripted: Any) -> None:
    told: list[tuple[int, int]] = []
    reply(scripted, prompt=range(20), on_prefill=lambda *counts: told.append(counts))
    assert told == [(0, 20), (19, 20), (20, 20)]
    with pytest.raises(ZeroDivisionError):
        reply(scripted, on_prefill=lambda done, total: 1 // 0)


def test_rates() -> None:
    timings = Timings(100, 0.5, 30, 1.5)
    assert timings.prompt_tokens_per_second == 200
    assert timings.decode_tokens_per_second == 20
    assert Timings(0, 0.0, 0, 0.0).decode_tokens_per_second == 0


def test_stops_come_as_a_tuple() -> None:
    assert checked_stops(None) == ()
    assert checked_stops("a") == ("a",)
    assert checked_stops(["a", "é" * 256]) == ("a", "é" * 256)


@pytest.mark.parametrize(
    "stop",
    [5, "", [""], [5], [None], {"a"}, ["a"] * 17, ["a" * 257], ["\ud800"], ["ok", "x\udfff"]],
)
def test_bad_stops_are_refused(stop: Any) -> None:
    with pytest.raises(OptionError, match=r"^stop ") as caught:
        checked_stops(stop)
    assert caught.value.field == "stop"
