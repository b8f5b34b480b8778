"""The same prompts answered by every model and under KV policies: what differs from its reference is marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from pipeline.reporting.answered import PolicyAnswer
from pipeline.reporting.load import Results
from pipeline.reporting.records import Bench

POLICIES_NOTE = (
    "The number after a policy’s name is its budget of KV entries a layer, small enough to evict on prompts this "
    "short. Under KV policies a model answers one prompt at a time in the benchmark’s own cache, elsewhere many at "
    "once in a cache of f32: rounding alone may turn a near tie, so that even under full KV it may answer otherwise."
)
MATCH_CHARS = 4000  # longer answers are shown whole but not compared


@dataclass(frozen=True)
class Answer:
    """One text with the models, or the policy, that gave it, in parts: (text, whether the reader should see it marked).

    White space around an answer is not shown; an answer that is nothing else has no parts.
    """

    models: list[str]
    parts: list[tuple[str, bool]]
    note: str = ""

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(part for part, _ in self.parts)


@dataclass(frozen=True)
class Question:
    """One test dialogue: what was asked, what the data answers, what models answer, and encodings under policies."""

    id: str
    prompt: str
    reference: str
    answers: list[Answer]
    policies: dict[str, list[Answer]]


def questions(results: Results) -> list[Question]:
    """Return the sample dialogues in the merged model's order, the base model's answer first."""
    return [_question(results, index) for index in range(len(results.quality["merged"].samples))]


def _question(results: Results, index: int) -> Question:
    merged = results.quality["merged"].samples[index]
    given = {cell: quality.samples[index].answer.strip() for cell, quality in results.quality.items()}
    answers = [Answer(models, list(_parts(given, models))) for models in _alike(given)]
    policies = {name: list(_under_policies(bench, index)) for name, bench in results.bench.items() if bench.answers}
    return Question(merged.id, merged.prompt, merged.reference, answers, policies)


def _alike(given: dict[str, str]) -> list[list[str]]:
    """Return the models grouped by answer, the base alone, in their order."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for cell, answer in given.items():
        groups.setdefault((answer, cell == "base"), []).append(cell)
    return list(groups.values())


def _parts(given: dict[str, str], models: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield an answer in parts, those marked that the merged model did not say there; base is not compared."""
    new = given[models[0]]
    return _marked(new if models == ["base"] else given["merged"], new)


def _under_policies(bench: Bench, index: int) -> Iterator[Answer]:
    """Yield an encoding's answers, that under full KV first; the others are marked where they differ from it."""
    full = bench.answers[0].answers[index].answer.strip()
    for policy in bench.answers:
        one = policy.answers[index]
        text = one.answer.strip()
        same = "; as under full KV" if text == full and policy is not bench.answers[0] else ""
        yield Answer([policy.name], list(_marked(full, text)), _fate(one) + same)


def _fate(one: PolicyAnswer) -> str:
    evicted = f"{one.evicted.value:,.0f}" if one.evicted.value else "none"
    return f"{one.entries.value:,.0f} entries kept, {evicted} evicted"


def _marked(old: str, new: str) -> Iterator[tuple[str, bool]]:
    """Yield ``new`` in parts, those marked that ``old`` does not say there."""
    if old == new or len(old) + len(new) > MATCH_CHARS:
        yield from [(new, False)] if new else []
        return
    for kind, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "delete":
            yield new[start:end], kind != "equal"
