"""The program as its own process: signals, pipes that close, narrow encodings, full disks.

The numbered list of bad inputs of test_catalogue.py, continued: case 70 is streams that close or
are narrow, case 71 signals.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from makers.folders import FolderMaker
from makers.vocabulary import stop_ids

Process = subprocess.Popen[bytes]
Start = Callable[..., Process]
PATIENCE_SECONDS = 30
STOPS_SECONDS = 2
# A reply that ends only when it is made to.
FOREVER = [word for id in stop_ids() for word in ("--logit-bias", f"{id}=-1000000")]


@pytest.fixture(scope="module")
def model(make_folder: FolderMaker) -> str:
    """A model whose context takes minutes to fill."""
    return str(make_folder("glm4", max_position_embeddings=1_000_000))


@pytest.fixture
def talk(start: Start, model: str) -> Callable[..., Process]:
    """Start a reply without end."""

    def begin(*arguments: str, **how: object) -> Process:
        words = ("--model", model, "-m", "900000", *FOREVER, *arguments)
        return start("generate", *words, **how)

    return begin


def first_text(process: Process) -> bytes:
    """Wait for the reply to begin and return its beginning."""
    assert process.stdout is not None
    return os.read(process.stdout.fileno(), 100)


def end(process: Process, *, within_seconds: float = STOPS_SECONDS) -> tuple[int, bytes, str]:
    """Wait for the end and return the exit code, the rest of stdout and stderr."""
    started = time.perf_counter()
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert time.perf_counter() - started < within_seconds
    return process.returncode, out, (err or b"").decode()


@pytest.mark.parametrize(
    ("number", "code", "last"), [(signal.SIGINT, 130, b"\n"), (signal.SIGTERM, 143, b"")]
)
def test_case_71_a_signal_in_a_reply(
    talk: Callable[..., Process], number: int, code: int, last: bytes
) -> None:
    process = talk("-p", "Hi")
    begun = first_text(process)
    process.send_signal(number)
    found, rest, err = end(process)
    assert (found, err) == (code, "")
    assert begun
    assert rest.endswith(last)


def test_case_71_twice(talk: Callable[..., Process]) -> None:
    process = talk("-p", "Hi")
    first_text(process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    code, _, err = end(process)
    assert (code, err) == (130, "")


def test_case_70_stdout_closes_in_a_reply(talk: Callable[..., Process]) -> None:
    process = talk("-p", "Hi")
    assert process.stdout is not None
    first_text(process)
    process.stdout.close()
    process.stdout = None
    code, _, err = end(process)
    assert (code, err) == (141, "")


def test_case_70_stdout_is_closed_before(start: Start) -> None:
    read, write = os.pipe()
    os.close(read)
    for arguments in (("--help",), ("info", "--help"), ("--version",)):
        process = start(*arguments, stdout=write)
        code, _, err = end(process, within_seconds=PATIENCE_SECONDS)
        assert (code, err) == (141, "")
    os.close(write)


def test_messages_that_nobody_reads_change_nothing(start: Start) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start("generate", "-p", "", stderr=write)
    assert end(process, within_seconds=PATIENCE_SECONDS)[:2] == (2, b"")
    os.close(write)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_case_70_streams_that_never_were(model: str, closed: str) -> None:
    command = f'exec "$0" -m glm_mlx generate --model "$1" -p Hi -m 5 --verbose {closed}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, model],
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_a_full_disk_is_named(start: Start, model: str, tmp_path: Path) -> None:
    """The limit on the size of a file stands in for the end of a disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2, 2))

    with (tmp_path / "reply.txt").open("wb") as file:
        process = start(
            "generate", "--model", model, "-p", "Hi", *FOREVER, stdout=file, preexec_fn=limit
        )
        code, _, err = end(process, within_seconds=PATIENCE_SECONDS)
    assert (code, err) == (4, "glm-mlx: error: stdout: File too large\n")


def test_case_70_ascii_only(start: Start, make_folder: FolderMaker) -> None:
    """What the encoding lacks is replaced in text, and escaped in JSON."""
    folder = make_folder("glm4")
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    words = ("generate", "--model", str(folder), "-p", "你好", "--seed", "5", "-m", "60")
    text = start(*words, *FOREVER, env=ascii_only).communicate(timeout=PATIENCE_SECONDS)[0]
    data = start(*words, *FOREVER, "--json", env=ascii_only).communicate(timeout=PATIENCE_SECONDS)
    said = json.loads(data[0])["text"]
    assert not said.isascii()
    assert text.decode("ascii").rstrip("\n") == said.encode("ascii", "replace").decode().rstrip(
        "\n"
    )


def test_a_pipe_of_chat(start: Start, model: str) -> None:
    process = start("chat", "--model", model, "-m", "4", "--seed", "1", "--temp", "0")
    out, err = process.communicate("你好\nhello\n".encode(), timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert out.endswith(b"\n")
    assert b">>>" not in out + err


# ---- a person at a terminal ----


class Terminal:
    """The program on a pseudo-terminal, as a person sees it."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self._keys, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glm_mlx", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_own_terminal,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(theirs)
        self.screen = ""

    def press(self, keys: str) -> None:
        """Type some keys, as late after a prompt as a person does.

        A Ctrl-C between the prompt and the wait for a key is seen at the next key only.
        """
        time.sleep(0.3)
        os.write(self._keys, keys.encode())

    def wait_for(self, pattern: str) -> None:
        """Read until the screen shows the pattern past what was waited for before."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := re.search(pattern, self.screen)):
            more = self._read(deadline)
            assert more, self.screen
            self.screen += more
        self.screen = self.screen[found.end() :]

    def close(self) -> int:
        """Read to the end, so that nothing waits for room on the screen; return the exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._read(deadline):
            pass
        os.close(self._keys)
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self, deadline: float) -> str:
        """What comes next, by the deadline; nothing once the program has ended."""
        patience_seconds = max(0.0, deadline - time.monotonic())
        assert select.select([self._keys], [], [], patience_seconds)[0], self.screen
        try:
            return os.read(self._keys, 4096).decode("utf-8", "replace")
        except OSError:  # how Linux says that the other side is gone
            return ""


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture
def chat(model: str) -> Iterator[Terminal]:
    terminal = Terminal("chat", "--model", model, *FOREVER)
    terminal.wait_for("/help lists the commands")
    terminal.wait_for(">>> ")
    yield terminal
    terminal.process.kill()
    terminal.process.wait()


def test_ctrl_c_in_a_reply_goes_back_to_the_prompt(chat: Terminal) -> None:
    chat.press("hello\n")
    chat.wait_for("hello\r\n.")
    chat.press(CTRL_C)
    chat.wait_for(">>> ")
    chat.press("/nonsense\n")
    chat.wait_for("error: no command /nonsense")
    chat.wait_for(">>> ")
    chat.press(CTRL_D)
    assert chat.close() == 0


def test_ctrl_c_twice_at_the_prompt_leaves(chat: Terminal) -> None:
    chat.press("half a line" + CTRL_C)
    chat.wait_for("Ctrl-C again, or Ctrl-D, leaves")
    chat.wait_for(">>> ")
    chat.press("/help\n")
    chat.wait_for("/exit")
    chat.wait_for(">>> ")
    chat.press(CTRL_C)
    chat.wait_for("Ctrl-C again")
    chat.wait_for(">>> ")
    chat.press(CTRL_C)
    assert chat.close() == 130


def test_an_error_between_two_ctrl_c_stays(chat: Terminal) -> None:
    for _ in range(2):
        chat.press(CTRL_C)
        chat.wait_for("Ctrl-C again, or Ctrl-D, leaves")
        chat.wait_for(">>> ")
        chat.press("/typo\n")
        chat.wait_for("error: no command /typo")
        chat.wait_for(">>> ")
    chat.press(CTRL_D)
    assert chat.close() == 0


def test_a_terminal_shows_figures_and_progress(model: str) -> None:
    terminal = Terminal("generate", "--model", model, "-p", "word " * 600, "-m", "3")
    terminal.wait_for(r"reading the prompt, [\d,]+ of [\d,]+ tokens")
    terminal.wait_for(r"figures: prompt [\d,]+ tokens")
    assert terminal.close() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_case_71_a_signal_in_a_prompt(model: str, number: int, code: int) -> None:
    terminal = Terminal("generate", "--model", model, "-p", "word " * 20_000)
    terminal.wait_for("reading the prompt")
    started = time.perf_counter()
    terminal.process.send_signal(number)
    assert terminal.close() == code
    assert time.perf_counter() - started < STOPS_SECONDS


def test_a_terminal_without_a_prompt_is_told(model: str) -> None:
    terminal = Terminal("generate", "--model", model)
    terminal.wait_for("nothing to say: give --prompt TEXT")
    assert terminal.close() == 2
