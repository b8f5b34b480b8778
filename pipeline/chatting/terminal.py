"""The terminal: lines in, replies out as they come; Ctrl-C stops a reply, a file remembers what was typed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from types import FrameType

from pipeline.chatting import commands
from pipeline.chatting.session import ENDED, FULL, STOPPED, TOO_LONG
from pipeline.chatting.talk import Talk, home
from pipeline.errors import UserError

PROMPT = "> "
REMEMBERED = 1000  # lines of the history file
ENDINGS = {
    TOO_LONG: "the reply was cut at its most tokens (--max-tokens)",
    FULL: "the context is full; `/policy NAME` with one that stays within a budget, or `/new`, goes on",
    STOPPED: "stopped",
}
# A reply must not steer the terminal: control characters are shown, not sent.
VISIBLE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def run(talk: Talk) -> None:
    """Talk until the input ends. Without a terminal every line is a message or command, and no prompt is printed."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    with _history(interactive):
        while (line := _line(interactive)) is not None:
            if not line.strip():
                continue
            try:
                _do(talk, line, interactive)
            except UserError as error:
                for problem in error.problems:
                    notice(f"error: {problem}")
            except KeyboardInterrupt:
                if not interactive:
                    raise
                notice("\nstopped")
            except commands.Quit:
                return
            except BrokenPipeError:  # whoever read the replies has gone
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return
            except OSError as error:
                notice(f"error: {error.filename or 'input or output'}: {error.strerror}")
    if interactive:
        print()  # behind Ctrl-D


def notice(text: str) -> None:
    """Print what is no reply; scripts that read replies do not see it."""
    print(text, file=sys.stderr, flush=True)


def well_formed(text: str) -> tuple[str, int]:
    """Return a line as UTF-8 text, and how many of its bytes were none and gave way to U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), sum(
        "\ud800" <= c <= "\udfff" for c in text
    )


def _line(interactive: bool) -> str | None:
    """Return the next line; None at the end of the input."""
    while True:
        try:
            if interactive:
                return input(PROMPT)
            return sys.stdin.readline() or None
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise
            notice("\nCtrl-D or /quit ends")


def _do(talk: Talk, line: str, interactive: bool) -> None:
    text, bad = well_formed(line)
    if bad:
        notice(f"{bad} bytes were not UTF-8 and became U+FFFD")
    if text.startswith(commands.SIGN):
        print(commands.run(talk, text.rstrip()).translate(VISIBLE), flush=True)
    else:
        _say(talk, text.strip(), interactive)


def _say(talk: Talk, text: str, interactive: bool) -> None:
    """Send a message and print the reply as it comes; Ctrl-C ends the reply in a terminal, and a script as a whole."""
    session = talk.session
    overlong = session.overlong
    with _interrupts() if interactive else nullcontext() as seen, closing(session.reply(text)) as pieces:
        for piece in pieces:
            print(piece.translate(VISIBLE), end="", flush=True)
            if seen:
                break
    print(flush=True)
    if session.overlong > overlong:
        notice(f"the message was longer than the cache ({max(session.setting.most)} entries): a part of it was kept")
    if session.last.ending != ENDED:
        notice(ENDINGS[session.last.ending])


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Yield a list that the first Ctrl-C fills, so that a token is finished; the second one breaks off at once."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _history(interactive: bool) -> Iterator[None]:
    """Remember the lines typed, over runs; line editing comes with it."""
    if not interactive:
        yield
        return
    import readline

    file = home() / "history"
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if file.exists():
        readline.read_history_file(file)
    readline.set_history_length(REMEMBERED)
    try:
        yield
    finally:
        readline.write_history_file(file)
        file.chmod(0o600)
