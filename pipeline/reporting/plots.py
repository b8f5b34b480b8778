"""Tidy rows for `dvc plots`: one flat JSON file a picture's subject, the same fields in every revision."""

from __future__ import annotations

import math

from pipeline.reporting import verdict
from pipeline.reporting.load import Results
from pipeline.reporting.verdict import MEGABYTE

Row = dict[str, str | float]


def tidy(results: Results) -> dict[str, list[Row]]:
    """Return the rows of each file in eval/plots/ by its name; numbers that are not finite are left out."""
    return {"encodings": encodings(results), "policies": policies(results)}


def encodings(results: Results) -> list[Row]:
    """Return size, divergence, perplexity and BERT-F1 of every encoding."""
    rows = []
    for name in results.quantized:
        metrics = results.quality[name].metrics
        numbers = {
            "size_mb": verdict.size(results, name) / MEGABYTE,
            "kld": metrics.kld.value,
            "ppl": metrics.perplexity.value,
            "bert_f1": metrics.bert_f1.value,
        }
        rows.append({"encoding": name, **_finite(numbers)})
    return rows


def policies(results: Results) -> list[Row]:
    """Return memory, divergence and time of every KV policy of the first benchmark at its greatest depth."""
    full, others = verdict.deepest(results)
    rows = []
    for row in (full, *others):
        numbers = {
            "kv_mb": verdict.held(row) / MEGABYTE,
            "kld": row.quality.kld.value,
            "tpot_ms": row.timing.tpot_ms_median.value,
        }
        rows.append({"policy": row.name, **_finite(numbers)})
    return rows


def _finite(numbers: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
