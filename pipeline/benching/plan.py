"""The plan of a benchmark: which policies on which documents, checked against the model's header and the test set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import io, prompts
from pipeline.benching import amortising
from pipeline.benching.amortising import Turn
from pipeline.benching.trial import Document
from pipeline.config import Bench
from pipeline.engines.llama import library
from pipeline.errors import UserError
from pipeline.kv import recipe as kv
from pipeline.kv.policy import FULL, Policy
from pipeline.kv.precision import CacheShape
from pipeline.prompts import Message
from pipeline.tasks import dialogue, recall, text
from pipeline.tasks.dialogue import DialogueTask
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
    """Cases, full KV first; one document a repetition for each depth; what else is done at the greatest depth."""

    cases: tuple[Case, ...]
    documents: dict[int, list[Document]]
    recall: dict[str, list[list[RecallTask]]]  # of each kind some contexts, the questions about each
    dialogues: list[list[DialogueTask]]  # conversations, the questions about each
    drafting: tuple[Case, ...]  # of lossless decoding
    answering: tuple[Case, ...]  # evaluate's samples, full KV first
    turns: tuple[Turn, ...]  # of a long conversation, if conversations are measured and a case makes summaries
    words: PreTrainedTokenizerBase  # the model's tokenizer

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The cases' policies."""
        return tuple(case.policy for case in self.cases)

    @property
    def trials(self) -> int:
        """How many trials, and contexts and conversations that are asked about, there are in all."""
        documents = sum(map(len, self.documents.values())) * sum(len(case.flash_settings) for case in self.cases)
        asked_about = len(self.dialogues) + sum(map(len, self.recall.values()))
        long = sum(map(amortising.summarises, self.cases)) if self.turns else 0
        drafting = len(self.drafting) * len(self.documents[max(self.documents)])
        return documents + asked_about * len(self.cases) + long + drafting


def plan(bench: Bench, gguf: Path, tokenizer: Path, dialogues: Path, seed: int) -> Plan:
    """Return what to measure; raise UserError with every misfit. Of the model the header alone is read."""
    named = (*bench.policies, *bench.lossless.policies, *bench.answers.policies)
    recipes = {name: kv.read(name) for name in named}
    with library.loaded(gguf, vocab_only=True) as model:
        shape, longest = library.cache_shape(model), library.context_length(model)
    found = list(_misfits(bench, recipes, shape, longest))
    words = prompts.load_tokenizer(tokenizer)
    messages = [record["messages"] for record in io.read_jsonl(dialogues)]
    documents = _noted(found, _documents, bench, words, messages)
    asked = _noted(found, _recall, bench, words, seed)
    conversations = _noted(found, dialogue.conversations, words, messages, max(bench.depths), bench.conversations, seed)
    measured = [recipes[name] for name in bench.policies]
    if all(recipe.policy(None, 0, shape.layers) != FULL for recipe in measured if not recipe.budgeted):
        found.append("bench.policies: full KV is missing, and all others are measured beside it; add 'full'")
    if found:
        raise UserError(*found)
    cases, drafting, answering = (
        [case for name in dict.fromkeys(names) for case in _cases(name, recipes[name], budgets, bench.slack, shape)]
        for _, names, budgets in _budgets(bench)
    )
    cases.sort(key=lambda case: case.policy != FULL)
    if answering:
        answering = [cases[0], *(case for case in answering if case.policy != FULL)]
    summarising = conversations and any(map(amortising.summarises, cases))
    long = amortising.turns(words, messages, amortising.LENGTH * max(bench.depths)) if summarising else ()
    return Plan(tuple(cases), documents, asked, conversations, tuple(drafting), tuple(answering), tuple(long), words)


def continuation(bench: Bench) -> int:
    """Return the tokens of a document's continuation: enough to time, and enough to score over all repetitions."""
    return max(bench.warmup_tokens + bench.decode_tokens, -(-bench.scored_tokens // bench.repetitions))


def _budgets(bench: Bench) -> Iterator[tuple[str, Sequence[str], Sequence[int]]]:
    """Yield for each list of policies the key of its budgets, the policies, and the budgets."""
    yield "bench.budgets", bench.policies, bench.budgets
    yield "bench.budgets", bench.lossless.policies, bench.budgets
    yield "bench.answers.budget", bench.answers.policies, [bench.answers.budget]


def _misfits(bench: Bench, recipes: dict[str, kv.PolicyRecipe], shape: CacheShape, longest: int) -> Iterator[str]:
    scored = max(continuation(bench), dialogue.ANSWER_TOKENS if bench.conversations else 0)
    yield from dict.fromkeys(
        f"{key}: {name}: {fault}"
        for key, names, budgets in _budgets(bench)
        for name in names
        if recipes[name].budgeted
        for budget in budgets
        for fault in recipes[name].problems(budget, shape.layers)
    )
    for name, recipe in recipes.items():
        yield from (f"bench.policies: {name}: {fault}; take it out" for fault in recipe.types.problems(shape))
        if fault := recipe.unheld():
            yield f"bench.policies: {name}: {fault}; take it out"
    for depth in bench.depths:
        if depth + scored > longest:
            yield (
                f"bench.depths: {depth} and {scored} tokens of continuation exceed the model's context of {longest} "
                f"tokens; take at most {longest - scored}"
            )
    if bench.lossless.policies and bench.decode_tokens < bench.lossless.draft_tokens + 2:
        yield (
            f"bench.decode_tokens: {bench.decode_tokens}, too few for a burst of {bench.lossless.draft_tokens} drafts; "
            f"take at least {bench.lossless.draft_tokens + 2}, or empty bench.lossless.policies"
        )


def _noted(found: list[str], make: Callable[..., Any], *given: Any) -> Any:
    """Return what ``make`` makes; a user's error joins what was ``found``."""
    try:
        return make(*given)
    except UserError as error:
        found += error.problems
        return None


def _cases(name: str, recipe: kv.PolicyRecipe, budgets: Sequence[int], slack: int, shape: CacheShape) -> Iterator[Case]:
    for budget in budgets if recipe.budgeted else [None]:
        yield Case(name, recipe.composition, budget, recipe.policy(budget, slack, shape.layers))


def _documents(
    bench: Bench, words: PreTrainedTokenizerBase, messages: Sequence[Sequence[Message]]
) -> dict[int, list[Document]]:
    made = {}
    for depth in bench.depths:
        found = text.documents(words, messages, depth + continuation(bench), bench.repetitions)
        made[depth] = [Document(ids[:depth], ids[depth:]) for ids in found]
    return made


def _recall(bench: Bench, words: PreTrainedTokenizerBase, seed: int) -> dict[str, list[list[RecallTask]]]:
    if not bench.recall_contexts:
        return {}
    wanted = max(bench.depths), bench.recall_contexts, seed, bench.recall_questions
    return {kind: recall.contexts(words, kind, *wanted) for kind in recall.KINDS}
