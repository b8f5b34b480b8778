"""Lossless decoding: policies draft, full KV verifies; what is accepted, and how fast it is beside full KV alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.benching.plan import Case, Plan
from pipeline.benching.prompts import Prompts
from pipeline.benching.stopwatch import timed
from pipeline.benching.trial import reading
from pipeline.config import Bench
from pipeline.engines import greedy, speculative
from pipeline.engines.cache import KvEngine
from pipeline.engines.speculative import Verified
from pipeline.kv.policy import FULL, Policy
from pipeline.metrics import uncertainty
from pipeline.metrics.measure import measure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Run:
    """One document's text by both ways; seconds on the wall, the prompts left out."""

    single: list[int]  # full KV's greedy text, token by token
    full_seconds: float
    alone: list[int]  # the same, each token scored in a block of the size that verifies
    found: Verified
    seconds: float
    shortfall: float


def rows(engine: KvEngine, bench: Bench, planned: Plan, bar: tqdm) -> list[dict]:
    """Return a row for every drafting case on the documents of the greatest depth; the cases take turns."""
    if not planned.drafting:
        return []
    depth, tokens, most = max(planned.documents), bench.decode_tokens, bench.lossless.draft_tokens
    runs: dict[Case, list[Run]] = {case: [] for case in planned.drafting}
    for prompt in (document.prompt for document in planned.documents[depth]):
        shared = Prompts(engine, prompt, [FULL, *(case.policy for case in planned.drafting)])
        single, full_seconds = plain(engine, prompt, shared, tokens)
        alone = in_blocks(engine, prompt, shared, (tokens, most))
        short = {tuple(single): 0.0}
        for case, done in runs.items():
            found, seconds = drafted(engine, case.policy, prompt, shared, (tokens, most), planned.words)
            if (text := tuple(found.ids)) not in short:  # most often one text for all
                short[text] = shortfall(engine, prompt, shared, text)
            done.append(Run(single, full_seconds, alone, found, seconds, short[text]))
            bar.update()
    return [row(case, depth, most, done) for case, done in runs.items()]


def plain(engine: KvEngine, prompt: Sequence[int], shared: Prompts, tokens: int) -> tuple[list[int], float]:
    """Return full KV's greedy text, decoded token by token, and its seconds."""
    with reading(engine, FULL, prompt, shared, tokens) as (stream, logits):
        return timed(greedy.decode, stream, logits, tokens)


def in_blocks(engine: KvEngine, prompt: Sequence[int], shared: Prompts, sizes: tuple[int, int]) -> list[int]:
    """Return full KV's greedy text, each token scored in a block of the size that verifies drafts."""
    tokens, most = sizes
    with reading(engine, FULL, prompt, shared, tokens + speculative.block_size(most)) as (stream, logits):
        return speculative.alone(stream, greedy.best(logits), tokens, most)


def drafted(
    engine: KvEngine,
    policy: Policy,
    prompt: Sequence[int],
    shared: Prompts,
    sizes: tuple[int, int],
    words: PreTrainedTokenizerBase | None = None,
) -> tuple[Verified, float]:
    """Return the text that a policy drafted and full KV verified, and its seconds."""
    tokens, most = sizes
    with (
        reading(engine, FULL, prompt, shared, tokens + speculative.block_size(most)) as (full, logits),
        reading(engine, policy, prompt, shared, tokens, words) as (draft, _),
    ):
        return timed(speculative.decode, full, draft, greedy.best(logits), tokens, most)


def shortfall(engine: KvEngine, prompt: Sequence[int], shared: Prompts, ids: Sequence[int]) -> float:
    """Return how far a text is from what full KV would choose token by token, in logits."""
    with reading(engine, FULL, prompt, shared, len(ids)) as (stream, logits):
        return speculative.shortfall(stream, logits, ids)


def row(case: Case, depth: int, most: int, runs: Sequence[Run]) -> dict:
    """Return the record of one drafting case."""
    found = [run.found for run in runs]
    seconds, full_seconds = (sum(getattr(run, name) for run in runs) for name in ("seconds", "full_seconds"))
    produced = [one.accepted + one.calls for one in found]
    calls = [one.calls for one in found]
    return {
        "policy": case.name,
        "budget": case.budget,
        "depth": depth,
        "draft_tokens": most,
        "acceptance": uncertainty.ratio_measure(
            [one.accepted for one in found], [one.drafted for one in found], unit="share", better="higher"
        ),
        "tokens_per_call": uncertainty.ratio_measure(produced, calls, unit="tokens", better="higher"),
        "calls": measure(sum(calls), unit="calls", better="lower"),
        "identical": all(run.found.ids == run.alone for run in runs),
        "identical_single": all(run.found.ids == run.single for run in runs),
        "shortfall": measure(max(run.shortfall for run in runs), unit="logits", better="lower"),
        "timing": {
            "seconds": measure(seconds, unit="s", better="lower"),
            "full_seconds": measure(full_seconds, unit="s", better="lower"),
            "ratio_to_full": measure(full_seconds / seconds, unit="x full KV", better="higher"),
        },
    }
