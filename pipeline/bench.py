"""bench: one quantised model on the CPU under every KV-cache policy, beside full KV measured in the same run.

Reads artifacts/quantized/<encoding>, the tokenizer of artifacts/merged, data/chat/test.jsonl and recipes/kv; writes
eval/bench/<encoding>.json. A repetition is one document: its prompt is prefilled, then its true continuation is
decoded, so that speed, perplexity and divergence come of the same tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline import io, stage
from pipeline.benching import machine, plan, row
from pipeline.benching.plan import Case
from pipeline.config import Bench, Params
from pipeline.engines.llama import library, trial
from pipeline.engines.llama.trial import Document
from pipeline.errors import UserError

log = logging.getLogger(__name__)

TEST = Path("data/chat/test.jsonl")
MERGED = Path("artifacts/merged")
QUANTIZED = Path("artifacts/quantized")
BENCH = Path("eval/bench")


def main(params: Params, encoding: str) -> None:
    """Benchmark one encoding."""
    path = gguf(encoding)
    planned = plan.plan(params.bench, path, MERGED, TEST)
    with (
        stage.timed(f"bench@{encoding}"),
        library.loaded(path) as model,
        tqdm(total=planned.trials, unit="trial", disable=None) as bar,
    ):
        rows = []
        for depth, documents in planned.documents.items():
            warm_up(model, params, documents[0])
            rows += measure_depth(model, params, planned.cases, depth, documents, bar)
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


def warm_up(model: Any, params: Params, document: Document) -> None:
    """Run one trial whose times are thrown away: the first one in a process pays for pages and threads."""
    trial.run(model, plan.FULL, document, warmup=1, timed=1, flash_attention=True, threads=params.runtime.threads)


def measure_depth(
    model: Any, params: Params, cases: Sequence[Case], depth: int, documents: Sequence[Document], bar: tqdm
) -> list[dict]:
    """Return the rows of one depth. Cases take turns on every document, so that a slow moment hits them alike."""
    tallies = {(case, flash): row.Tally() for case in cases for flash in case.flash_settings}
    for document in documents:
        full: dict[bool, np.ndarray] = {}  # logits of full KV, by flash attention: it is the first case
        for (case, flash), tally in tallies.items():
            one, logits = trial.run(
                model,
                case.policy,
                document,
                warmup=params.bench.warmup_tokens,
                timed=params.bench.decode_tokens,
                flash_attention=flash,
                threads=params.runtime.threads,
            )
            tally.add(one, logits, full.setdefault(flash, logits), document.continuation)
            bar.update()
    by_case = {case: {flash: tallies[case, flash] for flash in case.flash_settings} for case in cases}
    full_seconds = min(np.median(tally.seconds) for tally in by_case[cases[0]].values())
    return [row.row(case, depth, by_flash, full_seconds) for case, by_flash in by_case.items()]


def settings(bench: Bench) -> dict:
    """Return how the rows were measured."""
    return {
        **bench.model_dump(include={"slack", "decode_tokens", "warmup_tokens", "repetitions"}),
        "scored_tokens": plan.continuation(bench) * bench.repetitions,
        "documents": "test dialogues joined; one document a repetition, the same for all policies",
        "prefill": "policies that evict do so while they prefill, in blocks of at most slack + 1 tokens",
        "entries": "a cut is due above budget + slack entries, after the attention that saw them",
        "full": "the faster of flash attention off and on; so for every policy",
    }


if __name__ == "__main__":
    stage.run(main)
