"""What the numbers recommend, by stated rules: is it better than the base, which file, which KV policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.metrics import uncertainty
from pipeline.reporting.load import Results
from pipeline.reporting.measured import Measure
from pipeline.reporting.records import FULL, BenchRow
from pipeline.reporting.table import percent, plain

LOSSLESS_KLD = 0.01  # nats a token
SMALL_BITS = 5.5  # of storage a weight takes: blocks of 4-bit integers, their scales, some tensors in more
LONG_PPL = 1.05  # times full KV's perplexity
LONG_RECALL = 0.9  # times full KV's recall
MEGABYTE = 1e6

Item = TypeVar("Item")


@dataclass(frozen=True)
class Choice:
    """A recommendation for one situation: a name from params or None, the numbers behind it and its rule.

    ``beside`` is the other half of what to run: the KV policy for a file, the file for a KV policy.
    """

    situation: str
    name: str | None
    reason: str
    rule: str
    beside: str = ""


def gain(results: Results) -> Measure:
    """Return the merged model's mean gain in BERT-F1 over the base, paired dialogue by dialogue."""
    merged, base = (np.array(results.quality[cell].per_dialogue.bert_f1) for cell in ("merged", "base"))
    paired = uncertainty.mean_measure(merged - base, results.params.runtime.seed, better="higher")
    return Measure.model_validate(paired)


def sign(difference: Measure) -> int:
    """Return 1 where the 95 % interval lies above zero, -1 below, 0 where it holds zero or is not a number."""
    low, high = difference.ci95
    return int(low > 0) - int(high < 0)


def choices(results: Results) -> list[Choice]:
    """Return the recommendation for each situation."""
    return [best_quality(results), small_machine(results), accelerator(results), long_conversation(results)]


def best_quality(results: Results) -> Choice:
    """Return the smallest GGUF that predicts as the merged model does, or the nearest to it."""
    near = [name for name in _ggufs(results) if _kld(results, name) <= LOSSLESS_KLD]
    name = _least(near, lambda name: size(results, name)) or _least(_ggufs(results), lambda name: _kld(results, name))
    rule = f"The smallest GGUF within {LOSSLESS_KLD:g} nats a token of the merged model; if none is, the nearest."
    return Choice("Best quality", name, _file(results, name), rule, "with full KV")


def small_machine(results: Results) -> Choice:
    """Return the best of the 4-bit GGUF files."""
    bits = {name: _comparable(results.quantized[name].bits_per_weight) for name in _ggufs(results)}
    small = [name for name in bits if bits[name] <= SMALL_BITS]
    rule = f"The lowest divergence among GGUF files of at most {SMALL_BITS:g} bits a weight."
    name = _least(small, lambda name: _kld(results, name))
    return Choice("4-bit on a small machine", name, _file(results, name), rule, "with full KV")


def accelerator(results: Results) -> Choice:
    """Return the best of the formats made for GPU servers."""
    name = _least(_compressed(results), lambda name: _kld(results, name))
    rule = "The lowest divergence among compressed-tensors formats; their speed is not measured here."
    return Choice("GPU server", name, _file(results, name), rule, "with the server’s own KV cache")


def long_conversation(results: Results) -> Choice:
    """Return the KV policy that saves most memory at little loss, at the greatest depth."""
    row, full = thriftiest(results), deepest(results)[0]
    rule = f"The fewest KV bytes at perplexity at most {percent(LONG_PPL - 1)} above full KV’s"
    if late_recall(full) is not None:
        rule += f", and at recall of at least {percent(LONG_RECALL)} of full KV’s when asked after the cut"
    rule += ", at the greatest depth."
    encoding = results.params.bench.encodings[0]
    return Choice("Long conversations", row and row.name, _row(row, full), rule, f"on {encoding}")


def thriftiest(results: Results) -> BenchRow | None:
    """Return the row with the fewest KV bytes among those near full KV's perplexity that forget little."""
    full, others = deepest(results)
    limit = LONG_PPL * _comparable(full.quality.perplexity)
    near = [row for row in others if _comparable(row.quality.perplexity) <= limit and _remembers(row, full)]
    return _least([row for row in near if held(row) < held(full)], held)


def held(row: BenchRow) -> float:
    """Return the bytes of keys and values wherever they are: on a CPU, host memory is the cache's own."""
    return _comparable(row.kv_bytes_final) + _comparable(row.host_bytes)


def _remembers(row: BenchRow, full: BenchRow) -> bool:
    """Whether recall stays near full KV's; a row without recall shows nothing where full KV has some."""
    own, whole = late_recall(row), late_recall(full)
    return whole is None or (own is not None and own >= LONG_RECALL * whole)


def late_recall(row: BenchRow) -> float | None:
    """Return recall when asked after the cut: for policies that cut as they read, all questions are."""
    return row.recall_seen if row.recall_unseen is None else row.recall_unseen


def deepest(results: Results) -> tuple[BenchRow, list[BenchRow]]:
    """Return full KV's row and the others of the first benchmarked encoding at the greatest depth."""
    rows = results.bench[results.params.bench.encodings[0]].rows
    depth = max(row.depth for row in rows)
    rows = [row for row in rows if row.depth == depth]
    return next(row for row in rows if row.policy == FULL), [row for row in rows if row.policy != FULL]


def size(results: Results, cell: str) -> float:
    """Return the bytes on disk of a model."""
    return _comparable(results.quality[cell].size_bytes)


def is_gguf(results: Results, encoding: str) -> bool:
    """Whether an encoding is a file that llama.cpp runs, so that its speed on the CPU is real."""
    return results.quantized[encoding].family == "gguf"


def ratio(value: float, whole: float) -> float:
    """Return how much of ``whole`` a value is; not a number where there is no whole."""
    return value / whole if whole else math.nan


def _ggufs(results: Results) -> list[str]:
    return [name for name in results.quantized if is_gguf(results, name)]


def _compressed(results: Results) -> list[str]:
    return [name for name in results.quantized if not is_gguf(results, name)]


def _kld(results: Results, cell: str) -> float:
    return _comparable(results.quality[cell].metrics.kld)


def _comparable(measure: Measure) -> float:
    """Return a value for comparison: infinities too become nan, which is neither above nor below anything."""
    return measure.value if measure.finite else math.nan


def _least(items: Iterable[Item], key: Callable[[Item], float]) -> Item | None:
    """Return the item with the least key; one whose key is not a number never wins."""
    return min((item for item in items if not math.isnan(key(item))), key=key, default=None)


def _file(results: Results, name: str | None) -> str:
    if name is None:
        return "No file made here qualifies."
    metrics, merged = (results.quality[cell].metrics for cell in (name, "merged"))
    share = ratio(size(results, name), size(results, "merged"))
    return (
        f"{size(results, name) / MEGABYTE:,.1f} MB, {percent(share)} of the merged model; "
        f"BERT-F1 {plain(metrics.bert_f1.value, 3)} beside {plain(merged.bert_f1.value, 3)}, "
        f"KLD {plain(metrics.kld.value, 4)}, same top token {percent(metrics.same_top.value, 1)}"
    )


def _row(row: BenchRow | None, full: BenchRow) -> str:
    if row is None:
        return f"No policy stays that close to full KV at a depth of {full.depth} tokens; keep full KV."
    saving = 1 - ratio(held(row), held(full))
    loss = ratio(row.quality.perplexity.value, full.quality.perplexity.value) - 1
    speed = plain(row.timing.ratio_to_full.value, 2)
    own, whole = late_recall(row), late_recall(full)
    recall = "" if own is None or whole is None else f"recall {percent(own)} beside {percent(whole)}, "
    if whole == 0:
        recall += "which tells nothing, since full KV recalls nothing either, "
    return (
        f"{percent(saving)} fewer KV bytes at a depth of {full.depth} tokens; "
        f"perplexity {percent(loss, 1, True)}, {recall}{speed} × the speed of full KV"
    )
