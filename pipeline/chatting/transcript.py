"""The transcript of a conversation: JSON Lines, a message each, on the disk as soon as the message is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline import io
from pipeline.errors import UserError
from pipeline.prompts import Message

NAME = "transcript.jsonl"
ROLES = ("system", "user", "assistant")


def append(folder: Path, message: Message) -> None:
    """Add a message; a line that a kill has left unfinished stays a line of its own."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / NAME).open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
            file.write(b"\n" * torn)
        file.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write(folder: Path, messages: Sequence[Message]) -> None:
    """Write a whole transcript; raise UserError where another conversation is."""
    if (folder / NAME).exists():
        raise UserError(f"{folder}: holds a conversation already; name another folder, or /load that one")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    io.write_jsonl(folder / NAME, messages)


def read(folder: Path) -> tuple[list[Message], int]:
    """Return the messages of a transcript, and how many lines were no message and are left out.

    Raises UserError if there is no transcript.
    """
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder}: no conversation there ({NAME} is missing); /save makes one")
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    messages = [message for line in lines if (message := _message(line))]
    return messages, len(lines) - len(messages)


def _message(line: bytes) -> Message | None:
    try:
        found = json.loads(line)  # UTF-8, or it is no message
        role, content = found["role"], found["content"]
        content.encode()  # no lone surrogates either
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return {"role": role, "content": content} if role in ROLES else None
