"""bench: one quantised model on the CPU under every KV-cache policy, beside full KV measured in the same run.

Reads artifacts/quantized/<encoding>, the tokenizer of artifacts/merged, data/chat/test.jsonl, recipes/kv and the scorer
of BERT-F1; writes eval/bench/<encoding>.json. A repetition is one document: its prompt is prefilled, then its true
continuation is decoded, so that speed, perplexity and divergence come of the same tokens. Then facts early in a long
context and in a long conversation are asked for, policies draft for full KV, and some answer evaluate's samples.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import io, stage
from pipeline.config import Bench, Params
from pipeline.errors import UserError
from pipeline.metrics import bert_f1

if TYPE_CHECKING:
    from pipeline.benching.plan import Plan
    from pipeline.engines.llama.kv import LlamaKvEngine

log = logging.getLogger(__name__)

TEST = Path("data/chat/test.jsonl")
MERGED = Path("artifacts/merged")
QUANTIZED = Path("artifacts/quantized")
BENCH = Path("eval/bench")
NAMED = {"slack", "decode_tokens", "warmup_tokens", "repetitions", "conversations"}  # as they are


def main(params: Params, encoding: str) -> None:
    """Benchmark one encoding."""
    from tqdm import tqdm

    from pipeline.benching import amortising, answering, asking, lossless, machine, measuring, plan
    from pipeline.engines.llama.kv import LlamaKvEngine
    from pipeline.runtime import seed_torch

    path = gguf(encoding)
    planned = plan.plan(params.bench, path, MERGED, TEST, params.runtime.seed)
    samples = answering.samples(planned.words, TEST, params.evaluate)
    if planned.dialogues:
        bert_f1.locate(bert_f1.read(params.evaluate.scorer))  # what is missing is told before any work is done
    seed_torch(params.runtime)
    with (
        stage.timed(f"bench@{encoding}"),
        LlamaKvEngine(path, params.runtime.threads) as engine,
        tqdm(total=planned.trials + len(samples) * len(planned.answering), unit="trial", disable=None) as bar,
    ):
        rows = measuring.rows(engine, params.bench, planned, bar)
        setting = asking.Setting(path.resolve(), MERGED.resolve(), planned.policies, params.runtime)
        _add_recall(params, engine, planned, rows, asking.answers(setting, asking.questions(planned), bar))
        if planned.turns:
            amortising.add_shares(engine, planned, rows, bar)
        result = {
            "encoding": encoding,
            "model": path.name,
            "machine": machine.describe(params.runtime.threads),
            "settings": settings(params.bench, plan.continuation(params.bench)),
            "rows": rows,
            "lossless": lossless.rows(engine, params.bench, planned, bar),
            "answers": answering.rows(engine, planned, samples, bar),
        }
        io.write_json(BENCH / f"{encoding}.json", result)
    log.info("bench: %d rows of %s in %s", len(result["rows"]), path.name, BENCH / f"{encoding}.json")


def gguf(encoding: str) -> Path:
    """Return the GGUF file of an encoding; raise UserError if it has none."""
    found = sorted((QUANTIZED / encoding).glob("*.gguf"))
    if not found:
        raise UserError(
            f"bench.encodings: '{encoding}' has no GGUF file in {QUANTIZED / encoding}; make it with `dvc repro "
            "quantize`, and name GGUF encodings alone: other formats are not made for CPUs"
        )
    return found[0]


def _add_recall(params: Params, engine: LlamaKvEngine, planned: Plan, rows: list[dict], given: list[list]) -> None:
    """Add what was right of the answers to all questions to the rows of the greatest depth."""
    from pipeline.benching import conversing, recalling

    deepest = [row for row in rows if row["depth"] == max(planned.documents)]
    facts = sum(map(len, planned.recall.values()))
    recalling.add_recall(deepest, planned.recall, given[:facts])
    if planned.dialogues:
        judge = conversing.judge(params, MERGED)
        conversing.add_dialogue_recall(engine, planned, deepest, given[facts:], judge)


def settings(bench: Bench, continuation: int) -> dict[str, Any]:
    """Return how the rows were measured."""
    return {
        **bench.model_dump(include=NAMED),
        "scored_tokens": continuation * bench.repetitions,
        "documents": "test dialogues joined; one document a repetition, the same for all policies",
        "prefill": "once a document for all policies that cut at its end; online policies read in blocks between cuts",
        "flash_attention": "on for prefill, off for decoding but for quantised caches; full KV decodes with both",
        "entries": "a cut is due above budget + slack entries a layer on average, after the attention that saw them",
        "full": "the faster of flash attention off and on",
        "summary": "written aside in a cache of its own, which comes on top of a row's bytes; its time and work are in",
        "questions": "recall in all forms: one process a thread answers a share of them, and none of it is timed",
        "recall": f"{bench.recall_contexts} contexts of each kind, up to {bench.recall_questions} questions about each "
        "as if it were alone; seen: the first of them is read before the cut; unseen: all are read after it",
        "dialogue_recall": "every fact told is asked for, each as if alone, after the cut; KV bytes are the mean over "
        "tokens fed, ramp included",
        "conversation": "messages are read, replies decoded one by one, then read again as history, as chat does",
        "lossless": "full KV verifies in blocks of one size without flash attention; decoding alone is timed",
        "answers": "greedy; evicted are the tokens fed whose entries are gone at the end, mean over layers and heads",
    }


if __name__ == "__main__":
    stage.run(main)
