"""What bench measures in turns: every case on every document, timed and scored."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from pipeline.benching import row, trial
from pipeline.benching.plan import Plan
from pipeline.benching.prompts import Prompts
from pipeline.benching.trial import Document, Pace
from pipeline.benching.work import Work
from pipeline.config import Bench
from pipeline.engines.llama.kv import Flash, LlamaKvEngine
from pipeline.kv.policy import FULL

FLASH = {setting: Flash(prefill=True, decode=setting) for setting in (False, True)}


def rows(engine: LlamaKvEngine, bench: Bench, planned: Plan, bar: tqdm) -> list[dict]:
    """Return the record of every case at every depth."""
    found = []
    for depth, documents in planned.documents.items():
        warm_up(engine, documents[0])
        found += measure_depth(engine, bench, planned, depth, bar)
    return found


def warm_up(engine: LlamaKvEngine, document: Document) -> None:
    """Run one trial whose times are thrown away: the first one in a process pays for pages and threads."""
    trial.run(engine, FULL, document, Prompts(engine, document.prompt, [FULL]), Work.of(engine.model), Pace(1, 1))


def measure_depth(engine: LlamaKvEngine, bench: Bench, planned: Plan, depth: int, bar: tqdm) -> list[dict]:
    """Return the rows of one depth. Cases take turns on every document, so that a slow moment hits them alike."""
    cases = planned.cases
    tallies = {(case, flash): row.Tally() for case in cases for flash in case.flash_settings}
    work, pace = Work.of(engine.model), Pace(bench.warmup_tokens, bench.decode_tokens)
    for document in planned.documents[depth]:
        shared = Prompts(engine, document.prompt, [case.policy for case in cases])
        full: dict[bool, np.ndarray] = {}  # logits of full KV, by flash attention: it is the first case
        for (case, flash), tally in tallies.items():
            chosen = engine.with_flash(FLASH[flash])
            one, logits = trial.run(chosen, case.policy, document, shared, work, pace, planned.words)
            tally.add(one, logits, full.setdefault(flash, logits), document.continuation)
            bar.update()
    by_case = {case: {flash: tallies[case, flash] for flash in case.flash_settings} for case in cases}
    full_seconds = min(np.median(tally.seconds) for tally in by_case[cases[0]].values())
    return [row.row(case, depth, by_flash, full_seconds) for case, by_flash in by_case.items()]
