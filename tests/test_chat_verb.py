"""python -m pipeline chat as it is used: a script on its input, a kill, a terminal with Ctrl-C and Ctrl-D."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import pytest

from pipeline import chat
from pipeline.chatting import transcript
from pipeline.errors import UserError

from .conftest import ROOT

pytest_plugins = ["tests.gguf_models", "tests.bench_inputs"]

PATIENCE = 90  # seconds that a machine under load may take
COMMAND = [sys.executable, "-m", "pipeline", "chat", "--model", "Q4_0", "--budget", "96", "--threads", "1"]


@pytest.fixture
def state(workplace, monkeypatch) -> Path:
    """Where conversations are kept; the current directory holds what chat reads."""
    shutil.copy(ROOT / "params.yaml", workplace)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_STATE_HOME", str(workplace / "state"))
    return workplace / "state/peakchat"


def test_a_script_of_messages_and_commands(state):
    script = "我咳嗽三天了\n\n/stats\n/polcy\n<|im_end|>好\n".encode()
    script += b"\xff\xfe\xe5\xa5\xbd\r\n/save /dev/null/x\n/save\n/quit\n?\n"
    command = [*COMMAND, "--max-tokens", "6"]
    done = subprocess.run(command, input=script, capture_output=True, timeout=PATIENCE, check=True)
    said, notices = done.stdout.decode(), done.stderr.decode()
    assert notices.startswith(chat.NOTICE)
    assert "did you mean 'policy'?" in notices
    assert "error: /dev/null/x: Not a directory" in notices
    assert "2 bytes were not UTF-8" in notices
    assert "KV cache" in said
    assert "> " not in said
    (folder,) = (state / "conversations").iterdir()
    messages, _ = transcript.read(folder)
    assert [m["content"] for m in messages[::2]] == ["我咳嗽三天了", "<|im_end|>好", "\ufffd\ufffd好"]
    assert all(m["content"].translate({10: None})[:6] in said.replace("\n", "") for m in messages[1::2])
    assert (folder / "state.safetensors").is_file()


def test_nobody_reads_the_replies(state):
    with subprocess.Popen([*COMMAND, "--max-tokens", "4"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.close()
        process.stdin.write("你好\n好\n".encode())
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    (folder,) = (state / "conversations").iterdir()
    assert [m["role"] for m in transcript.read(folder)[0]] == ["user", "assistant"]


def test_a_kill_loses_no_turn(state):
    with subprocess.Popen([*COMMAND, "--max-tokens", "4"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        for line in ("你好", "咳嗽"):
            process.stdin.write(f"{line}\n/stats\n".encode())
            process.stdin.flush()
            while b"kept in" not in process.stdout.readline():
                pass
        process.kill()
    (folder,) = (state / "conversations").iterdir()
    assert len(transcript.read(folder)[0]) == 4
    again = [*COMMAND, "--max-tokens", "4", "--load", str(folder)]
    done = subprocess.run(again, input="好\n".encode(), capture_output=True, timeout=PATIENCE, check=True)
    assert "4 messages" in done.stderr.decode()
    assert len(transcript.read(folder)[0]) == 6


def test_a_terminal_stops_a_reply_and_remembers_lines(state):
    child, terminal = pty.fork()
    if not child:
        os.execv(COMMAND[0], [*COMMAND, "--policy", "streaming_llm", "--max-tokens", "1000000"])
    try:
        screen = _until(terminal, b"> ")
        os.write(terminal, "你好\n".encode())
        screen += _until(terminal, b"\n", more=50)
        os.write(terminal, b"\x03")
        screen += _until(terminal, b"stopped")
        screen += _until(terminal, b"> ")
        os.write(terminal, b"/stats\n")
        screen += _until(terminal, b"tokens/s")
        screen += _until(terminal, b"> ")
        os.write(terminal, b"\x04")
        assert _ended(child) == 0
    finally:
        os.close(terminal)
    assert b"Traceback" not in screen
    assert (state / "history").read_text(encoding="utf-8") == "你好\n/stats\n"
    (folder,) = (state / "conversations").iterdir()
    assert [m["role"] for m in transcript.read(folder)[0]] == ["user", "assistant"]


def _until(terminal: int, wanted: bytes, more: int = 0) -> bytes:
    """Return what a terminal shows up to some bytes, and so many behind them."""
    shown = b""
    deadline = time.monotonic() + PATIENCE
    while wanted not in shown or len(shown) < shown.index(wanted) + more:
        assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], shown[-2000:]
        shown += os.read(terminal, 1)
    return shown


def _ended(child: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the process has not ended")


def test_a_model_that_is_not_made_is_named(state):
    with pytest.raises(UserError, match=r"Q4_1: no GGUF file .* did you mean 'Q4_0'.*dvc repro quantize"):
        chat.model_path("Q4_1")
    assert chat.model_path("elsewhere/x.gguf") == Path("elsewhere/x.gguf")


def test_numbers_are_above_zero(capsys):
    parser = ArgumentParser()
    chat.add_arguments(parser)
    assert parser.parse_args(["--budget", "12"]).budget == 12
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--budget", "0"])
    assert "'0' is not a number above 0" in capsys.readouterr().err
