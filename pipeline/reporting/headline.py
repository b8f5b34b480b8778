"""eval/metrics.json: at most a dozen plain numbers for `dvc metrics diff` and `dvc exp show`, repeatable ones first."""

from __future__ import annotations

import math

from pipeline.reporting.load import Results
from pipeline.reporting.measured import Measure
from pipeline.reporting.verdict import MEGABYTE, deepest, gain, held, ratio, size, thriftiest


def headline(results: Results) -> dict[str, dict[str, float]]:
    """Return the headline numbers, grouped by one dot."""
    return _nested({name: measure.value for name, measure in numbers(results).items()})


def numbers(results: Results) -> dict[str, Measure]:
    """Return the headline numbers by name, each with the direction that is better.

    The encoding spoken of is the first that is benchmarked, the policy the one recommended for long conversations
    at the greatest depth (full KV where none is). ``bench.tok_s`` and ``bench.speedup`` are timings.
    """
    encoding = results.params.bench.encodings[0]
    base, merged, chosen = (results.quality[cell].metrics for cell in ("base", "merged", encoding))
    full = deepest(results)[0]
    row = thriftiest(results) or full
    lower = {
        "train.eval_loss": results.train.eval_loss["best"],
        "quality.ppl_base": base.perplexity,
        "quality.ppl": merged.perplexity,
        f"ppl.{encoding}": chosen.perplexity,
        f"kld.{encoding}": chosen.kld,
        f"size_mb.{encoding}": size(results, encoding) / MEGABYTE,
        "bench.ppl_ratio": ratio(row.quality.perplexity.value, full.quality.perplexity.value),
    }
    higher = {
        "quality.bert_f1": merged.bert_f1,
        "quality.bert_f1_gain": gain(results),
        "bench.kv_saving": 1 - ratio(held(row), held(full)),
        "bench.tok_s": row.timing.tokens_per_second,
        "bench.speedup": row.timing.ratio_to_full,
    }
    directions = {"lower": lower, "higher": higher}
    return {name: _directed(value, better) for better, values in directions.items() for name, value in values.items()}


def _directed(value: float | Measure, better: str) -> Measure:
    measure = value if isinstance(value, Measure) else Measure(value=value)
    return measure.model_copy(update={"better": better})


def _nested(numbers: dict[str, float]) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = {}
    for name, value in numbers.items():
        group, key = name.split(".", 1)
        groups.setdefault(group, {})[key] = float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return groups
