"""Two sets of results side by side: params that differ, headline numbers, encodings and KV policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.reporting.headline import numbers
from pipeline.reporting.load import Results
from pipeline.reporting.measured import Measure
from pipeline.reporting.provenance import leaves
from pipeline.reporting.records import FULL, BenchRow
from pipeline.reporting.table import ABSENT, Cell, Column, Table, build, measured, plain, text, words
from pipeline.reporting.verdict import MEGABYTE, held

SIGNIFICANT = 1.96  # standard errors that a difference must exceed
WORDS = {"higher": ("better", "worse"), "lower": ("worse", "better"), None: ("more", "less")}  # when rising, falling


@dataclass(frozen=True)
class Side:
    """One revision: its name, its params as they stand in the file, its results."""

    name: str
    raw: dict[str, Any]
    results: Results


@dataclass(frozen=True)
class Pair:
    """The same thing on both sides; None where a side lacks it."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Spec:
    """A column: what it measures of an item of a side; ``telling`` ones decide whether a row is marked."""

    label: str
    measure: Callable[[Any], Measure | None]
    digits: int
    better: str | None = None
    scale: float = 1
    title: str = ""
    telling: bool = False


def context(before: Side, after: Side) -> dict[str, Any]:
    """Return everything that the page of a comparison prints."""
    machines = [_machine(side.results) for side in (before, after)]
    return {
        "name": f"{before.name} → {after.name}",
        "sides": (before, after),
        "machines": list(dict.fromkeys(machines)),
        "settings": settings(before, after),
        "headline": headline(before.results, after.results),
        "scoreboard": scoreboard(before.results, after.results),
        "policies": list(policies(before.results, after.results)),
    }


def _machine(results: Results) -> str:
    return results.bench[results.params.bench.encodings[0]].machine.words


def settings(before: Side, after: Side) -> Table:
    """Return the params that differ, as they stand in each side's file."""
    old, new = (dict(leaves(side.raw)) for side in (before, after))
    names = [name for name in dict.fromkeys((*old, *new)) if old.get(name) != new.get(name)]
    columns = [
        words("Parameter", text),
        words(before.name, lambda name: text(old.get(name))),
        words(after.name, lambda name: text(new.get(name))),
    ]
    return build(columns, names)


def headline(before: Results, after: Results) -> Table:
    """Return the numbers of eval/metrics.json with their differences and what they mean."""
    old, new = numbers(before), numbers(after)
    pairs = [Pair(name, old.get(name), new.get(name)) for name in dict.fromkeys((*old, *new))]
    columns = [
        words("Measure", lambda pair: text(pair.name)),
        Column("Before", lambda pair: _figure(pair.before)),
        Column("After", lambda pair: _figure(pair.after)),
        Column("Difference", lambda pair: _difference(pair)),
        words("In words", lambda pair: text(_judged(pair)), "better or worse, where standard errors do not explain it"),
    ]
    return build(columns, pairs)


def _figure(measure: Measure | None) -> Cell:
    return Cell(ABSENT) if measure is None else Cell(f"{measure.value:.6g}", sort=measure.value)


def _difference(pair: Pair) -> Cell:
    if pair.before is None or pair.after is None:
        return Cell(ABSENT)
    change = pair.after.value - pair.before.value
    return Cell(f"{change:+.4g}".replace("-", "−") if change else "0", sort=change)


def _judged(pair: Pair) -> str:
    if pair.before is None or pair.after is None or pair.before.value == pair.after.value:
        return ""
    if not _beyond_error(pair.before, pair.after):
        return "within error" if pair.before.finite and pair.after.finite else ""
    return _word(pair.after.value - pair.before.value, pair.after.better)


def _word(change: float, better: str | None) -> str:
    return WORDS[better][change < 0]


QUALITY = (
    Spec("Size, MB", lambda one: one.size_bytes, 1, "lower", 1 / MEGABYTE, "weights on disk, 10⁶ bytes"),
    Spec("PPL", lambda one: one.metrics.perplexity, 2, "lower", title="of the reference answers", telling=True),
    Spec("KLD", lambda one: one.metrics.kld, 4, "lower", title="from its own side’s merged model", telling=True),
    Spec("Same top, %", lambda one: one.metrics.same_top, 1, "higher", 100, "as its own side’s merged model"),
    Spec("BERT-F1", lambda one: one.metrics.bert_f1, 4, "higher", title="answers against references", telling=True),
    Spec("Ended, %", lambda one: one.metrics.ended, 1, "higher", 100, "answers that end by themselves"),
)
POLICY = (
    Spec("Entries", lambda one: one.entries, 0, title="KV entries at the end, mean over layers"),
    Spec("KV, MB", lambda one: Measure(value=held(one)), 2, "lower", 1 / MEGABYTE, "KV while decoding, host included"),
    Spec("TTFT, s", lambda one: one.timing.ttft_s, 3, "lower", title="time to the first token"),
    Spec("TPOT, ms", lambda one: one.timing.tpot_ms_median, 2, "lower", title="time per output token, median"),
    Spec("× full", lambda one: one.timing.ratio_to_full, 2, "higher", title="speed beside full KV of its own run"),
    Spec("PPL", lambda one: one.quality.perplexity, 2, "lower", title="of continued text", telling=True),
    Spec("KLD", lambda one: one.quality.kld, 4, "lower", title="from full KV of its own run", telling=True),
    Spec("Recall, %", lambda one: _recall(one), 0, "higher", 100, "early facts answered rightly"),
)


def _recall(row: BenchRow) -> Measure | None:
    return None if row.recall_seen is None else Measure(value=row.recall_seen)


def scoreboard(before: Results, after: Results) -> Table:
    """Return base, merged and every encoding of either side."""
    return _table("Model", QUALITY, _pairs(before.quality, after.quality))


def policies(before: Results, after: Results) -> Iterator[tuple[str, int, Table]]:
    """Yield for each encoding and depth of either side, deepest first, the table of its policies."""
    for encoding in dict.fromkeys((*before.bench, *after.bench)):
        old, new = (results.bench[encoding].rows if encoding in results.bench else [] for results in (before, after))
        for depth in sorted({row.depth for row in (*old, *new)}, reverse=True):
            pairs = _pairs(_at(old, depth), _at(new, depth))
            yield encoding, depth, _table("Policy", POLICY, sorted(pairs, key=lambda pair: pair.name != FULL))


def _at(rows: list[BenchRow], depth: int) -> dict[str, BenchRow]:
    return {row.name: row for row in rows if row.depth == depth}


def _pairs(before: dict[str, Any], after: dict[str, Any]) -> list[Pair]:
    return [Pair(name, before.get(name), after.get(name)) for name in dict.fromkeys((*before, *after))]


def _table(label: str, specs: Iterable[Spec], pairs: Iterable[Pair]) -> Table:
    columns = [words(label, lambda pair: text(pair.name)), *(_column(spec) for spec in specs)]
    telling = [spec for spec in specs if spec.telling]
    return build(columns, pairs, marked=lambda pair: any(_beyond_error(*_both(spec, pair)) for spec in telling))


def _column(spec: Spec) -> Column:
    return Column(spec.label, lambda pair: _cell(spec, *_both(spec, pair)), spec.title, spec.better)


def _both(spec: Spec, pair: Pair) -> tuple[Measure | None, Measure | None]:
    before, after = (None if item is None else spec.measure(item) for item in (pair.before, pair.after))
    return before, after


def _cell(spec: Spec, before: Measure | None, after: Measure | None) -> Cell:
    """Return one number where both sides print the same, else both with the difference in words."""
    shown = [ABSENT if one is None else measured(one, spec.digits, spec.scale).text for one in (before, after)]
    sort = None if after is None else after.value
    if shown[0] == shown[1]:
        return Cell(shown[0], sort=sort)
    both = f"{shown[0]} → {shown[1]}"
    if before is None or after is None:
        return Cell(both, sort=sort)
    change = round(after.value * spec.scale, spec.digits) - round(before.value * spec.scale, spec.digits)
    if not math.isfinite(change):
        return Cell(both, sort=sort)
    return Cell(both, f"{_word(change, spec.better)} by {plain(abs(change), spec.digits)}", sort)


def _beyond_error(before: Measure | None, after: Measure | None) -> bool:
    """Whether two numbers differ by more than their standard errors explain; the test data being shared, cautiously."""
    if before is None or after is None or not (before.finite and after.finite):
        return False
    error = math.hypot(before.stderr or 0, after.stderr or 0)
    return abs(after.value - before.value) > SIGNIFICANT * error
