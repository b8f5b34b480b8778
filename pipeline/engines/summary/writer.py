"""Writers of summaries: the model itself, in a context of its own, or a choice of the text's own sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline import prompts
from pipeline.engines import greedy
from pipeline.engines.cache import Cache, KvEngine, Room
from pipeline.engines.stream import Stream
from pipeline.engines.summary import sentences
from pipeline.engines.summary.ledger import Passage
from pipeline.errors import UserError
from pipeline.kv.policy import Policy
from pipeline.kv.precision import F16, Precision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = (
    "你负责压缩一段对话的记录。把已有摘要和新内容合并成一段摘要，保留人物、症状、时间、用药和数字，"
    "不超过{most}个字。只写摘要本身。"
)
GENERATIONS = 4  # a summary of a summary drifts from the text: after so many its words stay as they are
OLD, NEW = "已有摘要：", "新内容："


@dataclass(frozen=True)
class Written:
    """What a writer gave, and what it took."""

    ids: tuple[int, ...]  # of plain text; none, or more than were allowed, if it failed
    computed: int = 0  # tokens that went through the model
    attended: int = 0  # entries that they saw, all layers added up
    predicted: int = 0
    generation: int = 0  # how often its oldest words have been written anew
    kv_bytes: int = 0  # of its own cache, at its fullest
    kind: str = ""  # type of that cache


class Writer(Protocol):
    """Makes a new summary of the old one and what was evicted since."""

    def write(self, old: Passage, evicted: Passage, most: int, again: bool = False) -> Written:
        """Return at most ``most`` tokens; none or more mean that it found no summary.

        ``again`` says that it found none the last time, so that the same way would fail the same way.
        """


@dataclass(frozen=True)
class Extractive:
    """Keeps the sentences that weigh most, word for word."""

    words: PreTrainedTokenizerBase

    def write(self, old: Passage, evicted: Passage, most: int, again: bool = False) -> Written:
        """Return sentences of both, in text order."""
        return Written(sentences.best(self.words, [old, evicted], most), generation=old.generation)


@dataclass(frozen=True)
class ModelWriter:
    """Asks the model, greedily, in a small cache that is gone afterwards: the main one is not touched."""

    engine: KvEngine
    words: PreTrainedTokenizerBase
    precision: Precision  # taken where model and engine can hold it; else the engine's default
    reads: int | None = None  # evicted tokens at most, of the sentences that weigh most; None reads all

    def write(self, old: Passage, evicted: Passage, most: int, again: bool = False) -> Written:
        """Return the answer without its thoughts; one that does not end within ``most`` tokens loses its last sentence.

        It is too long if not one sentence ends there. A writer that failed reads half as much ``again``. Of an old
        summary that has been rewritten often enough, half of the room keeps sentences word for word; the rest is new.
        """
        settled = old.generation >= GENERATIONS
        kept = sentences.best(self.words, [old], most // 2) if settled else ()
        most -= len(kept)
        request = self._request(() if settled else old.ids, self._read(evicted, again), most)
        prompt = prompts.prompt_ids(self.words, request)
        cache, precision = self._cache(len(prompt) + most + 1)
        stop = prompts.end_of_turn_id(self.words)
        try:
            stream = Stream(self.engine, cache, Policy(precision=precision))
            given = greedy.decode(stream, stream.feed(prompt)[-1], most + 1, stop)
            answer = self._answer(given, most, stop)
            return Written(
                ids=(*kept, *answer) if answer else (),
                computed=stream.seen,
                attended=stream.attended,
                predicted=len(given),
                kv_bytes=cache.kv_bytes(),
                kind=precision.k,
                generation=old.generation + (not settled),
            )
        finally:
            cache.close()

    def _read(self, evicted: Passage, again: bool) -> Sequence[int]:
        most = min(self.reads or len(evicted), len(evicted)) // (2 if again else 1)
        return evicted.ids if len(evicted) <= most else sentences.best(self.words, [evicted], most)

    def _answer(self, given: Sequence[int], most: int, stop: int) -> Sequence[int]:
        """Return an answer in plain text, up to its last sentence that has room if it has not; else more than that."""
        ended = given[-1] == stop
        plain = self._plain(given[:-1] if ended else given)
        if ended and len(plain) <= most:
            return plain
        room = min(most, len(plain) - 1)  # the line's end, behind the last sentence, ends none that is torn
        return sentences.head(self.words, plain, room) or (plain if ended else given)

    def _request(self, old: Sequence[int], evicted: Sequence[int], most: int) -> list[prompts.Message]:
        parts = [f"{OLD}\n{prompts.transcript(self.words, old)}"] if old else []
        parts.append(f"{NEW}\n{prompts.transcript(self.words, evicted)}")
        return [
            {"role": "system", "content": INSTRUCTION.format(most=most)},
            {"role": "user", "content": "\n\n".join(parts)},
        ]

    def _plain(self, answer: Sequence[int]) -> list[int]:
        """Return an answer as plain text on a line of its own, without control tokens."""
        text = prompts.answer_text(self.words, answer)
        return prompts.text_ids(self.words, f"{text}\n") if text else []

    def _cache(self, cells: int) -> tuple[Cache, Precision]:
        room = Room((cells,) * self.engine.shape.layers, self.precision, prefill=True)
        if not list(self.precision.problems(self.engine.shape)):
            try:
                return self.engine.cache(room), self.precision
            except UserError:
                pass  # this engine stores nothing of the kind
        return self.engine.cache(Room(room.cells, F16, prefill=True)), F16
