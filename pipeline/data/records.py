"""One raw line to one dialogue: JSON, the shapes that public dialogue sets come in, clean text, well-formed turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pipeline.prompts import Message


class Reason(StrEnum):
    """Why a line of a raw file is not in a split."""

    BLANK = "blank"
    MALFORMED = "malformed"  # not one JSON object in UTF-8
    SHAPE = "wrong_shape"  # no known shape, or a field of the wrong type
    EMPTY = "empty_turn"
    TURNS = "wrong_turns"  # user and assistant do not alternate, or the last turn is not the assistant's
    OVER_LONG = "over_long"
    DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    IN_TEST = "in_test"  # a training dialogue that also stands in the test files
    NEAR_TEST = "near_test"
    BEYOND_TEST = "beyond_test"  # a test dialogue after the first convert.test ones


class Rejected(Exception):
    """A line that cannot become a dialogue, and why."""

    def __init__(self, reason: Reason):
        self.reason = reason
        super().__init__(reason.value)


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def parse(line: bytes) -> dict:
    """Return the JSON object on a line; raise Rejected if the line is blank or holds anything else."""
    if not line.strip():
        raise Rejected(Reason.BLANK)
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Rejected(Reason.MALFORMED) from None
    if not isinstance(record, dict):
        raise Rejected(Reason.MALFORMED)
    return record


def shape_of(record: dict) -> str:
    """Return the name of a record's shape: messages, sharegpt or alpaca; raise Rejected if it has none."""
    for key, shape in KEYS.items():
        if key in record:
            return shape
    raise Rejected(Reason.SHAPE)


def dialogue(record: dict, shape: str) -> list[Message]:
    """Return the clean messages of a record; raise Rejected with the first thing that is wrong with it."""
    messages = [{"role": role, "content": clean(content)} for role, content in SHAPES[shape](record)]
    if not all(message["content"] for message in messages):
        raise Rejected(Reason.EMPTY)
    if not _well_formed([message["role"] for message in messages]):
        raise Rejected(Reason.TURNS)
    return messages


def clean(text: str) -> str:
    """Return ``text`` with LF line ends and no outer white space; raise Rejected if it is not valid Unicode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell but no file can hold
        raise Rejected(Reason.MALFORMED) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _well_formed(roles: list[str]) -> bool:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user", "assistant"] * (len(turns) // 2)
    return bool(turns) and turns == expected


def _alpaca(record: dict) -> list[tuple[str, str]]:
    history, user_input = record.get("history") or [], record.get("input") or ""
    if not (isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)):
        raise Rejected(Reason.SHAPE)
    texts = [text for pair in history for text in pair]
    last = [record["instruction"], user_input, record.get("output")]
    if not all(isinstance(text, str) for text in texts + last):
        raise Rejected(Reason.SHAPE)
    question = "\n".join(part for part in last[:2] if part.strip())
    return [(("user", "assistant")[index % 2], text) for index, text in enumerate([*texts, question, last[2]])]


def _sharegpt(record: dict) -> list[tuple[str, str]]:
    return _turns(record["conversations" if "conversations" in record else "conversation"])


def _messages(record: dict) -> list[tuple[str, str]]:
    return _turns(record["messages"])


def _turns(turns: Any) -> list[tuple[str, str]]:
    if not isinstance(turns, list):
        raise Rejected(Reason.SHAPE)
    return [_turn(turn) for turn in turns]


def _turn(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise Rejected(Reason.SHAPE)
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not (isinstance(role, str) and role in ROLES and isinstance(content, str)):
        raise Rejected(Reason.SHAPE)
    return ROLES[role], content


SHAPES: dict[str, Callable[[dict], list[tuple[str, str]]]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}
KEYS = {"messages": "messages", "conversations": "sharegpt", "conversation": "sharegpt", "instruction": "alpaca"}
