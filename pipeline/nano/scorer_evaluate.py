"""The proof that the scorer scores: matched against shuffled texts, paraphrases, word deletion; and its baseline."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np

from pipeline.io import read_jsonl
from pipeline.metrics import bert_f1, uncertainty
from pipeline.nano import scorer_text

log = logging.getLogger(__name__)

PARAPHRASES = Path(__file__).with_name("paraphrases.jsonl")
DELETED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
BASELINE_PAIRS = 1000
PROOF_PAIRS = 400  # of each set, drawn with the seed
AUC_BOUND = 0.95
Pair = tuple[str, str]
Score = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def prove(score: Score, sets: dict[str, list[Pair]], seed: int) -> dict:
    """Return every measure and whether its bound holds; ``sets`` are (question, answer) pairs never trained on."""
    measured = {name: of_pairs(score, pairs, seed) for name, pairs in sets.items()}
    paraphrases = of_paraphrases(score)
    met = {
        f"auc_rewritten >= {AUC_BOUND}": all(m["auc_rewritten"] >= AUC_BOUND for m in measured.values()),
        "paraphrase_above_unrelated == 1": paraphrases["paraphrase_above_unrelated"] == 1,
        "f1 falls with every further share of deleted words": all(
            bool((np.diff(list(m["f1_by_deleted_share"].values())) < 0).all()) for m in measured.values()
        ),
    }
    return {"met": met, "held_out": measured, "paraphrases": paraphrases}


def of_pairs(score: Score, pairs: Sequence[Pair], seed: int) -> dict:
    """Return the measures on one set of (question, answer) pairs."""
    rng = Random(seed)
    pairs = rng.sample(pairs, min(len(pairs), PROOF_PAIRS))
    questions, answers = [question for question, _ in pairs], [answer for _, answer in pairs]
    others = [answers[i] for i in uncertainty.derangement(len(answers), seed)]
    rewritten = [scorer_text.rewritten(answer, rng) for answer in answers]
    halves = [scorer_text.halves(answer) for answer in answers]
    shuffled_halves = [halves[i][1] for i in uncertainty.derangement(len(halves), seed + 1)]
    matched, unmatched = score(rewritten, answers), score(rewritten, others)
    return {
        "pairs": len(pairs),
        "f1_rewritten": _round(matched.mean()),
        "f1_shuffled": _round(unmatched.mean()),
        "auc_rewritten": _round(auc(matched, unmatched)),
        "auc_halves": _round(auc(score(*zip(*halves, strict=True)), score([a for a, _ in halves], shuffled_halves))),
        "auc_question": _round(auc(score(questions, answers), score(questions, others))),
        "auc_same_condition": _round(same_condition(score, pairs, rng)),
        "f1_by_deleted_share": {
            str(share): _round(score([scorer_text.delete_words(a, share, rng) for a in answers], answers).mean())
            for share in DELETED
        },
    }


def same_condition(score: Score, pairs: Sequence[Pair], rng: Random) -> float:
    """Return the AUC of answers to two questions on one condition against answers to questions on two."""
    named = [(scorer_text.condition(question), answer) for question, answer in pairs]
    named = [(condition, answer) for condition, answer in named if condition]
    same = [(a, b) for i, (c, a) in enumerate(named) for d, b in named[i + 1 :] if c == d]
    if not same:
        return float("nan")
    same = rng.sample(same, min(len(same), len(pairs)))
    different = []
    while len(different) < len(same):
        (c, a), (d, b) = rng.sample(named, 2)
        different += [(a, b)] if c != d else []
    return auc(score(*zip(*same, strict=True)), score(*zip(*different, strict=True)))


def of_paraphrases(score: Score) -> dict:
    """Return how far hand-written paraphrases stand above unrelated advice."""
    triples = list(read_jsonl(PARAPHRASES))
    references = [triple["reference"] for triple in triples]
    paraphrase = score([triple["paraphrase"] for triple in triples], references)
    unrelated = score([triple["unrelated"] for triple in triples], references)
    return {
        "triples": len(triples),
        "f1_paraphrase": _round(paraphrase.mean()),
        "f1_unrelated": _round(unrelated.mean()),
        "paraphrase_above_unrelated": _round((paraphrase > unrelated).mean()),
        "smallest_margin": _round((paraphrase - unrelated).min()),
    }


def baseline(directory: Path, layers: int, answers: Sequence[str], seed: int) -> str:
    """Return the CSV LAYER,P,R,F of unrelated answers, as bert-score makes it: the mean over random pairs."""
    from bert_score import BERTScorer

    scorer = BERTScorer(str(directory), layers, device="cpu", all_layers=True)
    rng = Random(seed)
    drawn = [rng.sample(answers, 2) for _ in range(BASELINE_PAIRS)]
    drawn.sort(key=lambda pair: max(map(len, pair)))
    chunks = [drawn[i : i + bert_f1.PAIRS] for i in range(0, len(drawn), bert_f1.PAIRS)]
    rows = np.concatenate([np.stack(scorer.score(*map(list, zip(*c, strict=True)))) for c in chunks], axis=-1).mean(-1)
    lines = [",".join([str(layer), *(f"{value:.6f}" for value in rows[:, layer])]) for layer in range(layers + 1)]
    return "\n".join(["LAYER,P,R,F", *lines]) + "\n"


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the chance that a positive scores above a negative, ties counting half (Mann and Whitney, 1947)."""
    below = positive[:, None] - negative[None]
    return float((below > 0).mean() + (below == 0).mean() / 2)


def _round(value: float) -> float:
    return round(float(value), 4)
