"""The same prompts answered by every model: equal answers together, what differs from the merged model marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from pipeline.reporting.load import Results

MATCH_CHARS = 4000  # longer answers are shown whole but not compared


@dataclass(frozen=True)
class Answer:
    """One text with the models that gave it, in parts: (text, whether the reader should see it marked).

    White space around an answer is not shown; an answer that is nothing else has no parts.
    """

    models: list[str]
    parts: list[tuple[str, bool]]

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(part for part, _ in self.parts)


@dataclass(frozen=True)
class Question:
    """One test dialogue: what was asked, what the data answers, what the models answer."""

    id: str
    prompt: str
    reference: str
    answers: list[Answer]


def questions(results: Results) -> list[Question]:
    """Return the sample dialogues in the merged model's order, the base model's answer first."""
    return [_question(results, index) for index in range(len(results.quality["merged"].samples))]


def _question(results: Results, index: int) -> Question:
    merged = results.quality["merged"].samples[index]
    given = {cell: quality.samples[index].answer.strip() for cell, quality in results.quality.items()}
    answers = [Answer(models, list(_parts(given, models))) for models in _alike(given)]
    return Question(merged.id, merged.prompt, merged.reference, answers)


def _alike(given: dict[str, str]) -> list[list[str]]:
    """Return the models grouped by answer, the base alone, in their order."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for cell, answer in given.items():
        groups.setdefault((answer, cell == "base"), []).append(cell)
    return list(groups.values())


def _parts(given: dict[str, str], models: list[str]) -> Iterator[tuple[str, bool]]:
    """Yield an answer in parts, those marked that the merged model did not say there; base is not compared."""
    old, new = given["merged"], given[models[0]]
    if models == ["base"] or "merged" in models or len(old) + len(new) > MATCH_CHARS:
        yield from [(new, False)] if new else []
        return
    for kind, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "delete":
            yield new[start:end], kind != "equal"
