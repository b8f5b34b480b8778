"""evaluate: one model answers the test set; BERT-F1, perplexity, divergence from the merged model, samples.

Reads data/chat/test.jsonl, artifacts/merged and the artifact of the cell, which is ``base``, ``merged`` or an
encoding; writes eval/quality/<cell>.json. Perplexity and divergence are of the reference answers, end of turn
included, on the same token ids for every cell.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import io, prompts, stage
from pipeline.config import Params
from pipeline.engines.engine import Engine, open_engine
from pipeline.errors import UserError, nearest
from pipeline.metrics import bert_f1, divergence, softmax, uncertainty
from pipeline.metrics.measure import measure
from pipeline.tasks import samples as sampled

log = logging.getLogger(__name__)

TEST = Path("data/chat/test.jsonl")
BASE = Path("artifacts/base")
MERGED = Path("artifacts/merged")
QUANTIZED = Path("artifacts/quantized")
QUALITY = Path("eval/quality")
WEIGHTS = ("*.gguf", "*.safetensors")


def main(params: Params, model: str) -> None:
    """Evaluate one cell: base, merged or an encoding."""
    artifact = _artifact(params, model)
    recipe = bert_f1.read(params.evaluate.scorer)
    check(artifact, recipe)
    with stage.timed(f"evaluate@{model}") as timings:
        dialogues = list(islice(io.read_jsonl(TEST), params.evaluate.dialogues))
        tokenizer = prompts.load_tokenizer(MERGED)
        examples = [prompts.example_ids(tokenizer, dialogue["messages"]) for dialogue in dialogues]
        with closing(open_engine(artifact, params.runtime, params.evaluate.batch_size)) as engine:
            answers = generate(engine, examples, params, timings)
            likelihood = score(engine, artifact, dialogues, examples, params, timings)
            name = engine.name
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
        quality, per_dialogue = answer_quality(params, recipe, dialogues, texts, timings)
        ended = [ids[-1:] == [prompts.end_of_turn_id(tokenizer)] for ids in answers]
        result = {
            "cell": model,
            "engine": name,
            "artifact": str(artifact),
            "scorer": bert_f1.identity(params.evaluate.scorer, recipe),
            "size_bytes": measure(weight_bytes(artifact), unit="bytes", better="lower"),
            "metrics": quality | likelihood | answer_shape(texts, ended, params.runtime.seed),
            "per_dialogue": {"ids": [dialogue["id"] for dialogue in dialogues], "bert_f1": per_dialogue},
            "samples": samples(dialogues, texts, params.evaluate.samples),
        }
        io.write_json(QUALITY / f"{model}.json", result)
    log.info("%s: %s", model, ", ".join(f"{key} {record['value']}" for key, record in result["metrics"].items()))


def check(artifact: Path, recipe: bert_f1.ScorerRecipe) -> None:
    """Raise UserError with everything that is missing, before any work is done."""
    stages = {MERGED: "merge", artifact: "quantize" if artifact.parent == QUANTIZED else artifact.name}
    found = [
        f"{path}: no model there; make it with `dvc repro {verb}`" for path, verb in stages.items() if not weights(path)
    ]
    if not TEST.is_file() or not TEST.stat().st_size:
        found.append(f"{TEST}: no test dialogues; make them with `dvc repro convert`")
    found.extend(bert_f1.problems(recipe))
    if found:
        raise UserError(*found)


def generate(engine: Engine, examples: Sequence, params: Params, timings: dict) -> list[list[int]]:
    """Return the greedy answer to each prompt as token ids; prompts of like length go together."""
    from tqdm import tqdm

    by_length = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    stop = examples[0][1][-1]
    answers: list[list[int]] = [[] for _ in examples]
    with clocked(timings, "generation", "tokens") as count:
        produced = engine.generate([examples[i][0] for i in by_length], params.evaluate.max_new_tokens, stop)
        for i, ids in zip(by_length, tqdm(produced, "answers", len(examples), disable=None), strict=True):
            answers[i] = ids
            count(len(ids))
    return answers


def score(
    engine: Engine, artifact: Path, dialogues: Sequence[dict], examples: Sequence, params: Params, timings: dict
) -> dict:
    """Return perplexity, bits a character, KLD and same-top of the reference answers, one dialogue held at a time."""
    from tqdm import tqdm

    from pipeline.metrics.modules import Divergence, Perplexity

    perplexity, apart = Perplexity(), Divergence()
    with clocked(timings, "scoring", "tokens") as count:
        logits = both_logits(engine, artifact, examples, params)
        steps = zip(dialogues, examples, tqdm(logits, "scoring", len(examples), disable=None), strict=True)
        for dialogue, (_, answer), (reference, own) in steps:
            nlls = softmax.token_nll(own, np.array(answer))
            perplexity.add(nlls=nlls, characters=len(dialogue["messages"][-1]["content"]))
            apart.add(klds=divergence.kld(reference, own), same=divergence.same_top(reference, own))
            count(len(answer))
    return {**perplexity.compute(), **apart.compute()}


def both_logits(
    engine: Engine, artifact: Path, examples: Sequence, params: Params
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (merged, own) logits of each reference answer; the merged model is its own reference, run once."""
    sequences = [prompt + answer for prompt, answer in examples]
    starts = [len(prompt) for prompt, _ in examples]
    if artifact == MERGED:
        yield from ((own, own) for own in engine.logits(sequences, starts))
        return
    with closing(open_engine(MERGED, params.runtime, params.evaluate.batch_size)) as merged:
        yield from zip(merged.logits(sequences, starts), engine.logits(sequences, starts), strict=True)


def answer_quality(
    params: Params, recipe: bert_f1.ScorerRecipe, dialogues: Sequence[dict], texts: Sequence[str], timings: dict
) -> tuple[dict, list[float]]:
    """Return the BERT-F1 measures of the answers, and the raw F1 of each dialogue."""
    from pipeline.metrics.modules import BertF1

    references = [dialogue["messages"][-1]["content"] for dialogue in dialogues]
    _, baseline = bert_f1.locate(recipe)
    with clocked(timings, "bert_f1", "answers") as count:
        metric = BertF1(bert_f1.open_scorer(recipe), bert_f1.baseline_f1(baseline, recipe.layer), params.runtime.seed)
        measures = metric.compute(predictions=texts, references=references)
        count(len(texts))
    per_dialogue = measures.pop("per_dialogue")
    return measures, per_dialogue


def answer_shape(texts: Sequence[str], ended: Sequence[bool], seed: int) -> dict:
    """Return the share of answers that end by themselves and the mean length of an answer."""
    return {
        "ended": uncertainty.mean_measure(ended, seed, unit="share", better="higher"),
        "answer_chars": uncertainty.mean_measure([len(text) for text in texts], seed, unit="characters"),
    }


def samples(dialogues: Sequence[dict], texts: Sequence[str], count: int) -> list[dict]:
    """Return the answers to the ``count`` sample dialogues."""
    chosen = [(dialogues[i], texts[i]) for i in sampled.chosen(dialogues, count)]
    return [
        {
            "id": dialogue["id"],
            "prompt": dialogue["messages"][-2]["content"],
            "reference": dialogue["messages"][-1]["content"],
            "answer": text,
        }
        for dialogue, text in chosen
    ]


def weights(directory: Path) -> list[Path]:
    """Return the weight files of an artifact."""
    return sorted(path for pattern in WEIGHTS for path in directory.glob(pattern))


def weight_bytes(directory: Path) -> int:
    """Return the size of an artifact's weights on disk."""
    return sum(io.size_bytes(path) for path in weights(directory))


@contextmanager
def clocked(timings: dict[str, Any], name: str, things: str) -> Iterator[Callable[[int], None]]:
    """Record the seconds of a block and how many ``things`` a second it did, as counted by the function it yields."""
    counts: list[int] = []
    started = time.perf_counter()
    yield counts.append
    seconds = time.perf_counter() - started
    timings |= {f"{name}_seconds": round(seconds, 2), f"{name}_{things}_per_second": round(sum(counts) / seconds, 1)}


def _artifact(params: Params, model: str) -> Path:
    cells = {"base": BASE, "merged": MERGED} | {name: QUANTIZED / name for name in params.quantize.encodings}
    if model not in cells:
        raise UserError(f"evaluate: no cell '{model}'{nearest(model, cells)} (known: {', '.join(cells)})")
    return cells[model]


if __name__ == "__main__":
    stage.run(main)
