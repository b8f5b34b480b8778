"""The plan of a benchmark: which policies on which documents, checked against the model's header and the test set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import io, prompts
from pipeline.config import Bench
from pipeline.engines.llama import library
from pipeline.engines.llama.trial import Document
from pipeline.errors import UserError
from pipeline.kv import policy as kv
from pipeline.kv.precision import Precision
from pipeline.tasks import text

SCORED_TOKENS = 512  # at least so many predictions make a row's quality, over all repetitions
FULL = kv.Policy(kv.Segments(whole=True), kv.Never(), "original", Precision())


@dataclass(frozen=True)
class Case:
    """A policy at a budget; None where the policy needs none."""

    name: str
    composition: str
    budget: int | None
    policy: kv.Policy

    @property
    def flash_settings(self) -> tuple[bool, ...]:
        """Flash attention off and on; llama.cpp quantises values only with it on."""
        return (True,) if self.policy.precision.quantised else (False, True)


@dataclass(frozen=True)
class Plan:
    """Cases, full KV first, and one document a repetition for each depth."""

    cases: tuple[Case, ...]
    documents: dict[int, list[Document]]

    @property
    def trials(self) -> int:
        """How many trials there are in all."""
        return sum(map(len, self.documents.values())) * sum(len(case.flash_settings) for case in self.cases)


def plan(bench: Bench, gguf: Path, tokenizer: Path, dialogues: Path) -> Plan:
    """Return what to measure; raise UserError with every misfit. Of the model the header alone is read."""
    recipes = {name: kv.read(name) for name in bench.policies}
    found = list(_misfits(bench, recipes, gguf))
    documents: dict[int, list[Document]] = {}
    try:
        documents = {depth: _documents(bench, depth, tokenizer, dialogues) for depth in bench.depths}
    except UserError as error:
        found += error.problems
    if found:
        raise UserError(*found)
    cases = [case for name, recipe in recipes.items() for case in _cases(name, recipe, bench)]
    if all(case.policy != FULL for case in cases):
        raise UserError("bench.policies: full KV is missing, and all others are measured beside it; add 'full'")
    return Plan(tuple(sorted(cases, key=lambda case: case.policy != FULL)), documents)


def continuation(bench: Bench) -> int:
    """Return the tokens of a document's continuation: enough to time, and enough to score over all repetitions."""
    return max(bench.warmup_tokens + bench.decode_tokens, -(-SCORED_TOKENS // bench.repetitions))


def _misfits(bench: Bench, recipes: dict[str, kv.PolicyRecipe], gguf: Path) -> Iterator[str]:
    with library.loaded(gguf, vocab_only=True) as model:
        shape, longest = library.cache_shape(model), library.context_length(model)
    scored = continuation(bench)
    for name, recipe in recipes.items():
        yield from (f"bench.budgets: {name}: {fault}" for b in bench.budgets if (fault := recipe.problem(b)))
        yield from (f"bench.policies: {name}: {fault}; take it out" for fault in recipe.types.problems(shape))
    for depth in bench.depths:
        if depth + scored > longest:
            yield (
                f"bench.depths: {depth} and {scored} tokens of continuation exceed the model's context of {longest} "
                f"tokens; take at most {longest - scored}"
            )


def _cases(name: str, recipe: kv.PolicyRecipe, bench: Bench) -> Iterator[Case]:
    for budget in bench.budgets if recipe.budgeted else [None]:
        yield Case(name, recipe.composition, budget, recipe.policy(budget, bench.slack))


def _documents(bench: Bench, depth: int, tokenizer: Path, dialogues: Path) -> list[Document]:
    messages = [dialogue["messages"] for dialogue in io.read_jsonl(dialogues)]
    loaded = prompts.load_tokenizer(tokenizer)
    found = text.documents(loaded, messages, depth + continuation(bench), bench.repetitions)
    return [Document(ids[:depth], ids[depth:]) for ids in found]
