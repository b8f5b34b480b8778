"""Recall tasks: questions about facts stated early in a long context, each answered exactly or not.

Three kinds: ``pairs`` (one fact a person), ``records`` (patients with several fields) and ``needles`` (facts strewn
over medical prose). Names, values and phrasings are those kept out of the training of the embedded base (facts.py),
the prose is this project's own (prose.py). The same arguments give the same tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.errors import UserError, nearest
from pipeline.metrics.measure import measure
from pipeline.tasks import facts, prose
from pipeline.tasks.facts import Fact
from pipeline.tasks.pools import pools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_DEPTH = 128
EARLY = 0.5  # the facts asked for lie in this first part of the context
NEEDLES = 8
START = "<|endoftext|>"
Z95 = 1.959964

Line = tuple[str, tuple[Fact, ...]]


@dataclass(frozen=True)
class RecallTask:
    """One question: feed ``prompt_ids``, take as many greedy tokens as ``answer_ids`` has, compare.

    All before ``question_at`` is the context, which other tasks may share.
    """

    kind: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    fact_span: tuple[int, int]  # prompt positions, from and up to, of the line that tells the answer
    question_at: int  # prompt position where the question begins
    stop: ClassVar[int | None] = None  # an answer ends by its length alone

    @property
    def tokens(self) -> int:
        """How many tokens answer it."""
        return len(self.answer_ids)


def tasks(tokenizer: PreTrainedTokenizerBase, kind: str, depth_tokens: int, n: int, seed: int) -> list[RecallTask]:
    """Return ``n`` tasks, each of a context of its own, whose prompts are exactly ``depth_tokens`` long.

    Raises UserError for an unknown kind or a depth below 128 tokens.
    """
    return [task for (task,) in contexts(tokenizer, kind, depth_tokens, n, seed, 1)]


def contexts(
    tokenizer: PreTrainedTokenizerBase, kind: str, depth_tokens: int, n: int, seed: int, questions: int
) -> list[list[RecallTask]]:
    """Return for each of ``n`` contexts its tasks, one for each of ``questions`` facts or of as many as it tells early.

    The longest prompt of a context has exactly ``depth_tokens``; the others end with shorter questions. Raises
    UserError for an unknown kind or a depth below 128 tokens.
    """
    problems = []
    if kind not in KINDS:
        problems.append(f"recall kind '{kind}': expected one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if depth_tokens < LEAST_DEPTH:
        problems.append(f"recall depth {depth_tokens}: expected at least {LEAST_DEPTH} tokens")
    if problems:
        raise UserError(*problems)
    chances = [Random(f"{seed}/{kind}/{depth_tokens}/{i}") for i in range(n)]
    return [_context(tokenizer, kind, depth_tokens, questions, rng) for rng in chances]


def score(asked: Sequence[RecallTask], answers: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the share of ``answers`` (token ids, one sequence a task) that begin with the right ids, with Wilson's
    95 % interval."""
    right = sum(
        tuple(given[: len(task.answer_ids)]) == task.answer_ids for task, given in zip(asked, answers, strict=True)
    )
    n = len(asked)
    share = right / n
    return measure(
        share, stderr=math.sqrt(share * (1 - share) / n), ci95=wilson(right, n), n=n, unit="share", better="higher"
    )


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson, 1927)."""
    centre = (right + Z95**2 / 2) / (n + Z95**2)
    half = Z95 / (n + Z95**2) * math.sqrt(right * (n - right) / n + Z95**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def _context(
    tokenizer: PreTrainedTokenizerBase, kind: str, depth: int, questions: int, rng: Random
) -> list[RecallTask]:
    encode = _encoder(tokenizer)
    room = depth - 1 - max(len(encode(facts.ask(pattern, _longest()))) for pattern in pools().test.questions)
    lines = KINDS[kind](rng, room, encode)
    ids, spans = _lay_out(lines, encode)
    early = [span for span in spans if span[0] < EARLY * len(ids)]
    if not early or len(ids) > room:
        raise UserError(f"recall depth {depth}: too short for one fact of kind '{kind}' with this tokenizer; take more")
    chosen = rng.sample(early, min(questions, len(early)))
    asked = [encode(facts.ask(rng.choice(pools().test.questions), fact)) for _, _, fact in chosen]
    padding = _prose_ids(rng, depth - 1 - len(ids) - max(map(len, asked)), encode)
    shift = 1 + len(padding)
    context = [tokenizer.convert_tokens_to_ids(START), *padding, *ids]
    return [
        RecallTask(
            kind=kind,
            prompt_ids=(*context, *question),
            answer_ids=tuple(encode(fact.value)),
            answer=fact.value,
            fact_span=(start + shift, end + shift),
            question_at=len(context),
        )
        for (start, end, fact), question in zip(chosen, asked, strict=True)
    ]


def _lay_out(lines: list[Line], encode: Callable[[str], list[int]]) -> tuple[list[int], list[tuple[int, int, Fact]]]:
    """Return the ids of all lines, and (from, up to, fact) for one fact of every line that tells any."""
    ids: list[int] = []
    spans = []
    for text, told in lines:
        start = len(ids)
        ids += encode(text)
        spans += [(start, len(ids), fact) for fact in told]
    return ids, spans


def _pairs(rng: Random, room: int, encode: Callable[[str], list[int]]) -> list[Line]:
    fields, used = rng.sample(list(facts.FIELDS), 4), set()

    def line() -> Line:
        fact = facts.fact(rng, fields, True, used)
        return facts.state(rng.choice(pools().test.facts), fact) + "\n", (fact,)

    return _fill(line, room, encode)


def _records(rng: Random, room: int, encode: Callable[[str], list[int]]) -> list[Line]:
    fields, used, pattern = rng.sample(list(facts.FIELDS), 3), set(), rng.choice(pools().test.records)

    def line() -> Line:
        about = facts.record(rng, fields, True, used)
        return facts.state_record(pattern, about) + "\n", tuple(about)

    return _fill(line, room, encode)


def _fill(line: Callable[[], Line], room: int, encode: Callable[[str], list[int]]) -> list[Line]:
    """Return as many lines as ``room`` tokens hold."""
    lines: list[Line] = []
    while True:
        new = line()
        room -= len(encode(new[0]))
        if room < 0:
            return lines
        lines.append(new)


def _needles(rng: Random, room: int, encode: Callable[[str], list[int]]) -> list[Line]:
    used: set[str] = set()

    def line() -> Line:
        fact = facts.fact(rng, list(facts.FIELDS), True, used)
        return facts.state(rng.choice(pools().test.facts), fact) + "\n", (fact,)

    needles = _fill(line, room // 3, encode)[:NEEDLES] or [line()]
    room -= sum(len(encode(text)) for text, _ in needles)
    hay: list[Line] = _fill(lambda: (prose.sentence(rng) + "\n", ()), room, encode)
    places = [0, *sorted(rng.randint(0, len(hay)) for _ in needles[1:])]
    for shift, (place, needle) in enumerate(zip(places, needles, strict=True)):
        hay.insert(place + shift, needle)
    return hay


def _prose_ids(rng: Random, tokens: int, encode: Callable[[str], list[int]]) -> list[int]:
    """Return exactly so many tokens of prose, the last one being a line's end."""
    if tokens <= 0:
        return []
    newline = encode("\n")
    ids = encode(prose.paragraph(rng, 2 * tokens))
    while len(ids) < tokens:
        ids += encode(prose.sentence(rng))
    return [*ids[: tokens - len(newline)], *newline][:tokens]


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def _longest() -> Fact:
    """Return a fact whose question is about as long as they get."""
    return Fact("欧阳德馨", "电话尾号", "")


KINDS = {"pairs": _pairs, "records": _records, "needles": _needles}
