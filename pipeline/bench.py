"""bench: one quantised model on the CPU under every KV-cache policy, beside full KV measured in the same run.

Reads artifacts/quantized/<encoding>, the tokenizer of artifacts/merged, data/chat/test.jsonl and recipes/kv; writes
eval/bench/<encoding>.json. A repetition is one document: its prompt is prefilled, then its true continuation is
decoded, so that speed, perplexity and divergence come of the same tokens. Then facts early in a long context are
asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline import io, stage
from pipeline.benching import machine, plan, recalling, row, trial
from pipeline.benching.plan import Case, Plan
from pipeline.benching.prompts import Prompts
from pipeline.benching.trial import Document, Pace
from pipeline.benching.work import Work
from pipeline.config import Bench, Params
from pipeline.engines.llama.kv import Flash, LlamaKvEngine
from pipeline.errors import UserError
from pipeline.kv.policy import FULL
from pipeline.runtime import seed_torch
from pipeline.tasks import recall

log = logging.getLogger(__name__)

TEST = Path("data/chat/test.jsonl")
MERGED = Path("artifacts/merged")
QUANTIZED = Path("artifacts/quantized")
BENCH = Path("eval/bench")
FLASH = {setting: Flash(prefill=True, decode=setting) for setting in (False, True)}


def main(params: Params, encoding: str) -> None:
    """Benchmark one encoding."""
    path = gguf(encoding)
    planned = plan.plan(params.bench, path, MERGED, TEST, params.runtime.seed)
    seed_torch(params.runtime)
    with (
        stage.timed(f"bench@{encoding}"),
        LlamaKvEngine(path, params.runtime.threads) as engine,
        tqdm(total=planned.trials, unit="trial", disable=None) as bar,
    ):
        rows = []
        for depth, documents in planned.documents.items():
            warm_up(engine, documents[0])
            rows += measure_depth(engine, params.bench, planned.cases, depth, documents, bar)
        add_recall(engine, planned, rows, bar)
        result = {
            "encoding": encoding,
            "model": path.name,
            "machine": machine.describe(params.runtime.threads),
            "settings": settings(params.bench),
            "rows": rows,
        }
        io.write_json(BENCH / f"{encoding}.json", result)
    log.info("bench: %d rows of %s in %s", len(rows), path.name, BENCH / f"{encoding}.json")


def gguf(encoding: str) -> Path:
    """Return the GGUF file of an encoding; raise UserError if it has none."""
    found = sorted((QUANTIZED / encoding).glob("*.gguf"))
    if not found:
        raise UserError(
            f"bench.encodings: '{encoding}' has no GGUF file in {QUANTIZED / encoding}; make it with `dvc repro "
            "quantize`, and name GGUF encodings alone: other formats are not made for CPUs"
        )
    return found[0]


def warm_up(engine: LlamaKvEngine, document: Document) -> None:
    """Run one trial whose times are thrown away: the first one in a process pays for pages and threads."""
    trial.run(engine, FULL, document, Prompts(engine, document.prompt, [FULL]), Work.of(engine.model), Pace(1, 1))


def measure_depth(
    engine: LlamaKvEngine,
    bench: Bench,
    cases: Sequence[Case],
    depth: int,
    documents: Sequence[Document],
    bar: tqdm,
) -> list[dict]:
    """Return the rows of one depth. Cases take turns on every document, so that a slow moment hits them alike."""
    tallies = {(case, flash): row.Tally() for case in cases for flash in case.flash_settings}
    work, pace = Work.of(engine.model), Pace(bench.warmup_tokens, bench.decode_tokens)
    for document in documents:
        shared = Prompts(engine, document.prompt, [case.policy for case in cases])
        full: dict[bool, np.ndarray] = {}  # logits of full KV, by flash attention: it is the first case
        for (case, flash), tally in tallies.items():
            one, logits = trial.run(engine.with_flash(FLASH[flash]), case.policy, document, shared, work, pace)
            tally.add(one, logits, full.setdefault(flash, logits), document.continuation)
            bar.update()
    by_case = {case: {flash: tallies[case, flash] for flash in case.flash_settings} for case in cases}
    full_seconds = min(np.median(tally.seconds) for tally in by_case[cases[0]].values())
    return [row.row(case, depth, by_flash, full_seconds) for case, by_flash in by_case.items()]


def add_recall(engine: LlamaKvEngine, planned: Plan, rows: Sequence[dict], bar: tqdm) -> None:
    """Ask every task under every case, and add the shares of right answers to the rows of the greatest depth."""
    deepest = [one for one in rows if one["depth"] == max(planned.documents)]
    policies = [case.policy for case in planned.cases]
    for kind, tasks in planned.recall.items():
        answers = []
        for task in tasks:
            answers.append(recalling.asked(engine, policies, task))
            bar.update(len(policies))
        for index, one in enumerate(deepest):
            given = [answer[index] for answer in answers]
            one.setdefault("recall", {})[kind] = {
                sight: recall.score(tasks, [answer[sight] for answer in given]) for sight in given[0]
            }


def settings(bench: Bench) -> dict:
    """Return how the rows were measured."""
    return {
        **bench.model_dump(include={"slack", "decode_tokens", "warmup_tokens", "repetitions", "recall_tasks"}),
        "scored_tokens": plan.continuation(bench) * bench.repetitions,
        "documents": "test dialogues joined; one document a repetition, the same for all policies",
        "prefill": "once a document for all policies that cut at its end; online policies read in blocks between cuts",
        "flash_attention": "on for prefill, off for decoding but for quantised caches; full KV decodes with both",
        "entries": "a cut is due above budget + slack entries a layer on average, after the attention that saw them",
        "full": "the faster of flash attention off and on",
        "recall": "seen: the question is read before the cut; unseen: after it",
    }


if __name__ == "__main__":
    stage.run(main)
