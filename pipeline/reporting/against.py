"""Published tables with ours beside them, as ratios to each one's own base row: models and data are never the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.reporting.load import Results
from pipeline.reporting.measured import Measure
from pipeline.reporting.records import FULL, BenchRow
from pipeline.reporting.references import Erratum, Figure, Heading, Line, Reference
from pipeline.reporting.table import ABSENT, Cell, Column, Table, build, percent, plain, text, words
from pipeline.reporting.verdict import held

LACKING = "no recipe here"
MERGED = "merged"  # what an encoding is measured beside
MEASURES: dict[str, tuple[str, Callable[[BenchRow], float | None]]] = {  # name: (heading, its value in our rows)
    "perplexity": ("PPL", lambda row: row.quality.perplexity.value),
    "top1": ("top-1", lambda row: row.quality.top1 and row.quality.top1.value),
    "recall": ("recall", lambda row: row.recall_seen),
    "ttft": ("TTFT", lambda row: row.timing.ttft_s.value),
    "tpot": ("TPOT", lambda row: row.timing.tpot_ms_median.value),
    "tokens_per_second": ("tok/s", lambda row: row.timing.tokens_per_second.value),
    "kv_bytes": ("KV bytes", held),
}


@dataclass(frozen=True)
class Ours:
    """Our row nearest to a published one: where it was measured, its ratios to our base row, and why it differs."""

    name: str
    where: str
    ratios: dict[str, float]
    reason: str


@dataclass(frozen=True)
class Comparison:
    """A published table with ours beside it, ready to print."""

    reference: Reference
    table: Table


def comparisons(results: Results, references: dict[str, Reference]) -> list[Comparison]:
    """Return each published table with ours beside it, in the order given."""
    return [Comparison(one, table(results, one)) for one in references.values()]


def table(results: Results, reference: Reference) -> Table:
    """Return the published figures, each with its ratio to its table's base row, then ours at the nearest share.

    The share is the part of full KV's entries that a row keeps. Ours is looked up in the first benchmarked encoding.
    """
    ours = {row.method: nearest(results, reference, row) for row in reference.rows}
    columns = [
        words("Method", lambda row: text(row.method)),
        Column("Kept, %", lambda row: _share(row.share), "share of full KV's entries, mean over layers"),
        *(_published(reference, heading) for heading in reference.columns if _has_figures(reference, heading)),
        words(
            "Ours",
            lambda row: replace(text(ours[row.method].name), detail=ours[row.method].where),
            "our policy or format nearest to it",
        ),
        *(_own(name, ours) for name in _measures(reference)),
        words("Why it differs", lambda row: text(ours[row.method].reason)),
    ]
    return build(columns, reference.rows, marked=lambda row: row.base)


def _has_figures(reference: Reference, heading: Heading) -> bool:
    return any(row.values.get(heading.name) is not None for row in reference.rows)


def _measures(reference: Reference) -> list[str]:
    return list(dict.fromkeys(column.ours for column in reference.columns if column.ours))


def _share(share: float | None) -> Cell:
    return Cell(ABSENT) if share is None else Cell(f"{100 * share:.3g}", sort=share)


def _published(reference: Reference, heading: Heading) -> Column:
    label = f"{heading.name}, {heading.unit}" if heading.unit else heading.name
    numeric = any(isinstance(row.values.get(heading.name), float) for row in reference.rows)

    def cell(row: Line) -> Cell:
        value = row.values.get(heading.name)
        if not isinstance(value, float):
            return text(value)
        base = reference.base.values.get(heading.name) if reference.base and not row.base else None
        return Cell(f"{value:,.6g}", detail=_times(value, base), sort=value)

    return Column(label, cell, "as published; × is beside the marked row", heading.better, numeric)


def _times(value: float, base: Figure | None) -> str:
    return f"(× {ratio_text(value / base)})" if isinstance(base, float) and base else ""


def ratio_text(ratio: float) -> str:
    """Return a ratio with up to three decimals, a large one without any."""
    return plain(ratio, 0) if ratio >= 100 else f"{ratio:.3f}".rstrip("0").rstrip(".")


def _own(measure: str, ours: dict[str, Ours]) -> Column:
    def cell(row: Line) -> Cell:
        ratio = ours[row.method].ratios.get(measure, math.nan)
        return Cell(f"× {ratio_text(ratio)}", sort=ratio) if math.isfinite(ratio) else Cell(ABSENT)

    return Column(f"our {MEASURES[measure][0]}", cell, "ours beside our row for the marked one")


def nearest(results: Results, reference: Reference, row: Line) -> Ours:
    """Return ours for a published row: the policy at the nearest share of the entries, or the encoding."""
    if row.encoding:
        return _weights(results, row)
    if not row.policy:
        return Ours("", "", {}, "; ".join(part for part in (LACKING, row.note) if part))
    rows = results.bench[results.params.bench.encodings[0]].rows
    own = [one for one in rows if one.policy == row.policy]
    if not own:
        return Ours(row.policy, "", {}, "not among bench.policies of this run")
    chosen = min(own, key=lambda one: (_distance(row.share, one, rows), -one.depth))
    base = reference.base and _base(rows, reference.base.policy, chosen)
    kept = _kept(chosen, rows)
    where = f"depth {chosen.depth}, {percent(kept)} kept"
    return Ours(chosen.name, where, _ratios(_measures(reference), chosen, base), _reason(row, kept))


def _base(rows: list[BenchRow], policy: str | None, row: BenchRow) -> BenchRow | None:
    return next((one for one in rows if (one.policy, one.depth) == (policy, row.depth) and _fits(one, row)), None)


def _fits(base: BenchRow, row: BenchRow) -> bool:
    return None in (base.budget, row.budget) or base.budget == row.budget


def _kept(row: BenchRow, rows: list[BenchRow]) -> float:
    full = next(one for one in rows if (one.policy, one.depth) == (FULL, row.depth))
    return row.entries.value / full.entries.value


def _distance(share: float | None, row: BenchRow, rows: list[BenchRow]) -> float:
    return 0 if share is None else round(abs(_kept(row, rows) - share), 3)


def _ratios(measures: list[str], row: BenchRow, base: BenchRow | None) -> dict[str, float]:
    if base is None:
        return {}
    pairs = {name: (MEASURES[name][1](row), MEASURES[name][1](base)) for name in measures}
    return {name: own / whole for name, (own, whole) in pairs.items() if own is not None and whole}


def _reason(row: Line, kept: float) -> str:
    if row.base:
        return row.note
    other = "another share kept" if row.share and percent(row.share) != percent(kept) else ""
    return "; ".join(part for part in (other, row.note) if part)


def _weights(results: Results, row: Line) -> Ours:
    if row.encoding not in results.quality:
        return Ours(row.encoding, "", {}, "not among quantize.encodings of this run")
    own, merged = (_perplexity(results, cell) for cell in (row.encoding, MERGED))
    return Ours(row.encoding, f"beside {MERGED}", {"perplexity": own.value / merged.value}, row.note)


def _perplexity(results: Results, cell: str) -> Measure:
    return results.quality[cell].metrics.perplexity


def errata_table(errata: tuple[Erratum, ...]) -> Table:
    """Return what is wrong with the sources, one line each."""
    columns = [
        words("No.", lambda one: text(one.id)),
        words("Where", lambda one: text(one.where)),
        words("What is wrong", lambda one: text(one.finding)),
    ]
    return build(columns, errata)
