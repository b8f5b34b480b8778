"""Raw files to a corpus: every line is read, checked and either kept or counted under its reason."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline import prompts
from pipeline.data import dedup, records
from pipeline.data.corpus import Corpus
from pipeline.data.records import Reason, Rejected
from pipeline.data.summary import Ledger
from pipeline.prompts import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Collector:
    """Fills ``corpus`` with the usable dialogues of raw files, each dialogue once.

    Give it the test files before the training files: a training dialogue that stands in them is dropped.
    """

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        self._corpus = corpus
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._seen: dict[int, str] = {}  # key of a dialogue -> split of the file it came from

    def read(self, path: Path, ledger: Ledger, file: int) -> None:
        """Account for every line of the raw file ``path``, which is number ``file`` of the corpus."""
        for number, line in enumerate(raw_lines(path), 1):
            ledger.lines += 1
            try:
                self._accept(line, ledger, file)
            except Rejected as rejected:
                ledger.drop(rejected.reason, number)

    def _accept(self, line: bytes, ledger: Ledger, file: int) -> None:
        record = records.parse(line)
        shape = records.shape_of(record)
        ledger.shapes[shape] += 1
        messages = records.dialogue(record, shape)
        tokens = self._tokens(messages)
        text = dedup.normal_form(messages)
        self._once(dedup.key_of(text), ledger.split)
        self._corpus.append(messages, text, file=file, tokens=tokens, defused=self._defused(messages))

    def _tokens(self, messages: list[Message]) -> int:
        tokens = sum(len(ids) for ids in prompts.example_ids(self._tokenizer, messages))
        if tokens > self._max_tokens:
            raise Rejected(Reason.OVER_LONG)
        return tokens

    def _once(self, key: int, split: str) -> None:
        if key in self._seen:
            raise Rejected(Reason.DUPLICATE if self._seen[key] == split else Reason.IN_TEST)
        self._seen[key] = split

    def _defused(self, messages: list[Message]) -> bool:
        return any(prompts.defuse(self._tokenizer, message["content"]) != message["content"] for message in messages)


def raw_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a raw file, one in memory at a time, without a byte order mark."""
    bar = tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=None)
    with path.open("rb") as file, bar:
        for number, line in enumerate(file):
            bar.update(len(line))
            yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
