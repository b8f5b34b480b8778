"""The dialogues accepted so far: their text in a file on disk, a few numbers about each in memory."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data import dedup
from pipeline.prompts import Message


class Corpus:
    """Append-only; dialogue ``i`` is the i-th appended. About 250 bytes of memory a dialogue.

    ``keys`` identify dialogues, ``questions`` their first user turns; ``files`` is the index of the raw file,
    ``tokens`` the length of the rendered dialogue, ``answers`` the number of assistant turns, ``defused`` whether its
    text spells control tokens.
    """

    def __init__(self, path: Path, near_duplicate: float):
        self._file = path.open("w+b")
        self._offsets = array("q")
        self._rows = dedup.rows_per_band(near_duplicate)
        self._bands = array("Q")
        self.keys, self.questions = array("Q"), array("Q")
        self.files, self.tokens, self.answers, self.defused = array("l"), array("l"), array("l"), array("b")

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, messages: Sequence[Message], text: str, *, file: int, tokens: int, defused: bool) -> None:
        """Add a dialogue whose normal form is ``text``."""
        key = dedup.key_of(text)
        record = {"id": f"{key:016x}", "messages": list(messages)}
        self._offsets.append(self._file.tell())
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n")
        self._bands.frombytes(dedup.bands(text, self._rows).tobytes())
        self.keys.append(key)
        self.questions.append(dedup.key_of(dedup.normal_form([m for m in messages if m["role"] == "user"][:1])))
        self.files.append(file)
        self.tokens.append(tokens)
        self.answers.append(sum(message["role"] == "assistant" for message in messages))
        self.defused.append(defused)

    def line(self, index: int) -> bytes:
        """Return dialogue ``index`` as the line of JSON that a split holds."""
        self._file.seek(self._offsets[index])
        return self._file.readline()

    def text(self, index: int) -> str:
        """Return the normal form of dialogue ``index``."""
        return dedup.normal_form(json.loads(self.line(index))["messages"])

    def bands(self) -> np.ndarray:
        """Return the MinHash band keys, uint64 (dialogues, bands)."""
        return np.frombuffer(self._bands, dtype=np.uint64).reshape(len(self), -1)
