"""The plan of a benchmark: which policies on which documents, checked against the model's header and the test set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import io, prompts
from pipeline.benching.trial import Document
from pipeline.config import Bench
from pipeline.engines.llama import library
from pipeline.errors import UserError
from pipeline.kv import recipe as kv
from pipeline.kv.policy import FULL, Policy
from pipeline.kv.precision import CacheShape
from pipeline.tasks import recall, text
from pipeline.tasks.recall import RecallTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Case:
    """A policy at a budget; None where the policy needs none."""

    name: str
    composition: str
    budget: int | None
    policy: Policy

    @property
    def flash_settings(self) -> tuple[bool, ...]:
        """Flash attention while decoding: off, but on for quantised values; full KV is measured with both."""
        if self.policy.precision.quantised:
            return (True,)
        return (False, True) if self.policy == FULL else (False,)


@dataclass(frozen=True)
class Plan:
    """Cases, full KV first; one document a repetition for each depth; recall tasks at the greatest depth."""

    cases: tuple[Case, ...]
    documents: dict[int, list[Document]]
    recall: dict[str, list[RecallTask]]
    words: PreTrainedTokenizerBase  # the model's tokenizer

    @property
    def trials(self) -> int:
        """How many trials and questions there are in all."""
        documents = sum(map(len, self.documents.values())) * sum(len(case.flash_settings) for case in self.cases)
        return documents + sum(map(len, self.recall.values())) * len(self.cases)


def plan(bench: Bench, gguf: Path, tokenizer: Path, dialogues: Path, seed: int) -> Plan:
    """Return what to measure; raise UserError with every misfit. Of the model the header alone is read."""
    recipes = {name: kv.read(name) for name in bench.policies}
    with library.loaded(gguf, vocab_only=True) as model:
        shape, longest = library.cache_shape(model), library.context_length(model)
    found = list(_misfits(bench, recipes, shape, longest))
    documents: dict[int, list[Document]] = {}
    asked: dict[str, list[RecallTask]] = {}
    words = prompts.load_tokenizer(tokenizer)
    try:
        documents = _documents(bench, words, dialogues)
    except UserError as error:
        found += error.problems
    try:
        asked = _recall(bench, words, seed)
    except UserError as error:
        found += error.problems
    if all(recipe.policy(None, 0, shape.layers) != FULL for recipe in recipes.values() if not recipe.budgeted):
        found.append("bench.policies: full KV is missing, and all others are measured beside it; add 'full'")
    if found:
        raise UserError(*found)
    cases = [case for name, recipe in recipes.items() for case in _cases(name, recipe, bench, shape)]
    return Plan(tuple(sorted(cases, key=lambda case: case.policy != FULL)), documents, asked, words)


def continuation(bench: Bench) -> int:
    """Return the tokens of a document's continuation: enough to time, and enough to score over all repetitions."""
    return max(bench.warmup_tokens + bench.decode_tokens, -(-bench.scored_tokens // bench.repetitions))


def _misfits(bench: Bench, recipes: dict[str, kv.PolicyRecipe], shape: CacheShape, longest: int) -> Iterator[str]:
    scored = continuation(bench)
    for name, recipe in recipes.items():
        if recipe.budgeted:
            yield from (
                f"bench.budgets: {name}: {fault}" for b in bench.budgets for fault in recipe.problems(b, shape.layers)
            )
        yield from (f"bench.policies: {name}: {fault}; take it out" for fault in recipe.types.problems(shape))
        if fault := recipe.unheld():
            yield f"bench.policies: {name}: {fault}; take it out"
    for depth in bench.depths:
        if depth + scored > longest:
            yield (
                f"bench.depths: {depth} and {scored} tokens of continuation exceed the model's context of {longest} "
                f"tokens; take at most {longest - scored}"
            )


def _cases(name: str, recipe: kv.PolicyRecipe, bench: Bench, shape: CacheShape) -> Iterator[Case]:
    for budget in bench.budgets if recipe.budgeted else [None]:
        yield Case(name, recipe.composition, budget, recipe.policy(budget, bench.slack, shape.layers))


def _documents(bench: Bench, words: PreTrainedTokenizerBase, dialogues: Path) -> dict[int, list[Document]]:
    messages = [dialogue["messages"] for dialogue in io.read_jsonl(dialogues)]
    made = {}
    for depth in bench.depths:
        found = text.documents(words, messages, depth + continuation(bench), bench.repetitions)
        made[depth] = [Document(ids[:depth], ids[depth:]) for ids in found]
    return made


def _recall(bench: Bench, words: PreTrainedTokenizerBase, seed: int) -> dict[str, list[RecallTask]]:
    if not bench.recall_tasks:
        return {}
    return {kind: recall.tasks(words, kind, max(bench.depths), bench.recall_tasks, seed) for kind in recall.KINDS}
