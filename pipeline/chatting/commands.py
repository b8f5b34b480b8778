"""What can be typed besides messages: one table of commands, each of which returns what to print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import recipes
from pipeline.chatting.setting import DEFAULT_BUDGET
from pipeline.chatting.talk import Loaded, Talk
from pipeline.errors import UserError, nearest

SIGN = "/"


class Quit(Exception):
    """The user wants to end."""


@dataclass(frozen=True)
class Command:
    """What follows the name, what it does, and the function that does it."""

    usage: str
    summary: str
    run: Callable[[Talk, str], str]


def run(talk: Talk, line: str) -> str:
    """Run a line that begins with a slash; raise UserError for what is no command, Quit at the end."""
    name, _, rest = line.removeprefix(SIGN).partition(" ")
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        raise UserError(f"no command {SIGN}{name}{hint} ({SIGN}help lists them; a message may begin with a space)")
    return COMMANDS[name].run(talk, rest.strip())


def loaded(result: Loaded, talk: Talk) -> str:
    """Say what came of loading a conversation."""
    lines = [f"state refused: {problem}" for problem in result.refused]
    if result.skipped:
        lines.append(f"{result.skipped} lines of the transcript are no messages; left out")
    if talk.session.messages and talk.session.messages[-1]["role"] == "user":
        lines.append("the last message has no reply yet; the next one follows it")
    how = "with its state" if result.from_state else "read again from its text"
    lines.append(
        f"{result.messages} messages from {talk.folder}, {how} ({result.read} tokens), under {talk.session.setting}"
    )
    return "\n".join(lines)


def _help(talk: Talk, rest: str) -> str:
    names = [f"{SIGN}{name} {command.usage}".strip() for name, command in COMMANDS.items()]
    width = max(map(len, names))
    lines = [f"{name:<{width}}  {one.summary}" for name, one in zip(names, COMMANDS.values(), strict=True)]
    return "\n".join([*lines, f"{'Ctrl-C':<{width}}  stop a reply", f"{'Ctrl-D':<{width}}  the same as {SIGN}quit"])


def _policy(talk: Talk, rest: str) -> str:
    if not rest:
        return "\n".join([f"now {talk.session.setting}: {talk.session.setting.recipe.composition}", _fitting(talk)])
    name, _, number = rest.partition(" ")
    budget = talk.session.setting.budget or DEFAULT_BUDGET
    if number:
        if not number.strip().isdecimal() or not int(number):
            raise UserError(f"budget '{number.strip()}': expected a number of entries above 0; {SIGN}policy NAME 1024")
        budget = int(number)
    read = talk.change(name, budget)
    again = f"; the conversation was read again under it ({read} tokens)" if read else ""
    return f"now {talk.session.setting}{again}"


def _fitting(talk: Talk) -> str:
    """Return the names of the policies that may be taken."""
    names = []
    for name in recipes.names("kv"):
        try:
            talk.source.setting(name, talk.session.setting.budget or DEFAULT_BUDGET)
        except UserError:
            continue
        names.append(name)
    return f"to choose from: {', '.join(names)}"


def _stats(talk: Talk, rest: str) -> str:
    rows = list(_figures(talk))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {figure}" for name, figure in rows)


def _figures(talk: Talk) -> Iterator[tuple[str, str]]:
    session = talk.session
    chosen, lives, bytes_ = session.setting, session.stream.lives, session.kv_bytes()
    yield "policy", f"{chosen}: {chosen.recipe.composition}"
    left = "" if chosen.limit is None else f" of at most {chosen.limit}"
    yield "read", f"{session.stream.seen} tokens{left}, {len(session.messages)} messages"
    yield "entries", f"{sum(lives) / len(lives):.0f} a layer, at most {max(chosen.most)}"
    yield "KV cache", f"{bytes_:,} bytes, at most as many again to take a reply back"
    yield "beside it", f"{session.stream.state_bytes():,} bytes that the policy keeps"
    if session.overlong:
        yield "overlong", f"{session.overlong} messages were longer than the cache; a part of each was kept"
    if turn := session.last:
        speed = "" if turn.per_second is None else f", then {turn.per_second:.1f} tokens/s"
        yield "last reply", f"{turn.tokens} tokens, the first after {turn.first_s:.2f} s{speed}"
    if summary := session.summary():
        yield "summary", summary
    yield "kept in", str(talk.folder)


def _save(talk: Talk, rest: str) -> str:
    folder = talk.save(Path(rest).expanduser() if rest else None)
    return f"saved in {folder}; `{SIGN}load {folder}` goes on from here"


def _load(talk: Talk, rest: str) -> str:
    if not rest:
        raise UserError(f"{SIGN}load needs the folder of a saved conversation")
    return loaded(talk.load(Path(rest).expanduser()), talk)


def _new(talk: Talk, rest: str) -> str:
    before = talk.folder if talk.session.messages else None
    talk.new()
    return "a new conversation" + (f"; the one before is kept in {before}" if before else "")


def _quit(talk: Talk, rest: str) -> str:
    raise Quit


COMMANDS = {
    "help": Command("", "this list", _help),
    "policy": Command("[NAME [BUDGET]]", "which policy, or take another: it reads the text again", _policy),
    "stats": Command("", "the cache, its bytes and entries, speed, summary", _stats),
    "save": Command("[FOLDER]", "write the transcript and the state of the cache", _save),
    "load": Command("FOLDER", "go on with a saved conversation", _load),
    "new": Command("", "start afresh", _new),
    "quit": Command("", "end", _quit),
}
