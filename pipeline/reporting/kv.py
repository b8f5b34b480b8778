"""The section on KV policies: for each benchmarked encoding its Pareto figures, bars, cards and tables."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from pipeline.reporting import figures, kept, pareto, tables, verdict
from pipeline.reporting.figures import Bar
from pipeline.reporting.load import Results
from pipeline.reporting.origin import PolicyRecipe
from pipeline.reporting.pareto import Plane, Spot
from pipeline.reporting.records import FULL, Bench, BenchRow
from pipeline.reporting.table import Table, percent, plain
from pipeline.reporting.verdict import MEGABYTE

KINDS = ("keeps every entry", "cuts at the prompt’s end", "cuts while it reads", "drops tokens between layers")
QUALITY = Plane("KLD from full KV over KV memory", "KV cache while decoding, MB", "KLD, nats a token", log=True)
RECALL = Plane("Recall over KV memory", "KV cache while decoding, MB", "recall, %", higher=True)


@dataclass(frozen=True)
class Card:
    """One policy: what it is, what it kept, what its authors published and what was measured here."""

    name: str
    mark: Markup
    kind: str
    parts: list[str]
    recipe: PolicyRecipe
    measured: str
    picture: Markup | None


@dataclass(frozen=True)
class Section:
    """One encoding under every policy; figures and cards are of the greatest depth, ``tables`` of each."""

    encoding: str
    bench: Bench
    depth: int
    front: Table
    quality: Markup
    recall: Markup | None
    ttft: Markup
    tpot: Markup
    best: list[Card]
    others: list[Card]
    tables: list[tuple[int, Table, Table | None]]


def sections(results: Results) -> list[Section]:
    """Return the section of every benchmarked encoding."""
    return [_section(results, name, bench) for name, bench in results.bench.items()]


def legend() -> list[tuple[Markup, str]]:
    """Return the marks of the Pareto figures with what they stand for."""
    return [(pareto.mark(index), words) for index, words in enumerate(KINDS)]


def _section(results: Results, encoding: str, bench: Bench) -> Section:
    depths = sorted({row.depth for row in bench.rows}, reverse=True)
    rows, chosen = tables.rows_at(bench, depths[0]), verdict.thriftiest(results)
    names = _names(rows)
    spots = [_spot(results, row, names[row.name], row.quality.kld.value) for row in rows]
    best = [spot.name for spot in pareto.front(spots)]
    by_name = {names[row.name]: row for row in rows}
    cards = [_card(results, row, names[row.name], rows[0]) for row in rows]
    return Section(
        encoding=encoding,
        bench=bench,
        depth=depths[0],
        front=tables.front([by_name[name] for name in best], rows[0], chosen),
        quality=pareto.figure(QUALITY, spots),
        recall=_recalled(results, rows, names),
        ttft=figures.bars("Time to the first token", [_first_token(row, names) for row in rows], "s"),
        tpot=figures.bars("Time per output token", [_each_token(row, names) for row in rows], "ms"),
        best=[card for card in cards if card.name in best],
        others=[card for card in cards if card.name not in best],
        tables=[(at, tables.policies(bench, at, chosen), tables.recall(bench, at, chosen)) for at in depths],
    )


def _names(rows: list[BenchRow]) -> dict[str, str]:
    """Return what the figures call each row: its policy, with the budget only where there are several."""
    several = len({row.budget for row in rows if row.budget}) > 1
    return {row.name: row.name if several else row.policy for row in rows}


def _recipe(results: Results, row: BenchRow) -> PolicyRecipe:
    return results.origin.policies.get(row.policy, PolicyRecipe())


def _kind(recipe: PolicyRecipe) -> int:
    """Return the index in KINDS of how a policy saves memory."""
    cuts = bool(recipe.prefill or recipe.decode)
    return 3 if recipe.narrow else 2 if recipe.online else int(cuts)


def _spot(results: Results, row: BenchRow, name: str, value: float) -> Spot:
    size = verdict.held(row) / MEGABYTE
    return Spot(name, size, value, _kind(_recipe(results, row)), reference=row.policy == FULL)


def _recalled(results: Results, rows: list[BenchRow], names: dict[str, str]) -> Markup | None:
    """Draw recall over memory; None where nothing was asked."""
    shares = [(row, verdict.late_recall(row)) for row in rows]
    spots = [_spot(results, row, names[row.name], 100 * share) for row, share in shares if share is not None]
    return pareto.figure(RECALL, spots) if spots else None


def _first_token(row: BenchRow, names: dict[str, str]) -> Bar:
    time, error = row.timing.ttft_s.value, row.timing.ttft_s.stderr or 0.0
    return Bar(names[row.name], time, time - error, time + error, row.policy == FULL)


def _each_token(row: BenchRow, names: dict[str, str]) -> Bar:
    median, slow = row.timing.tpot_ms_median.value, row.timing.tpot_ms_p95.value
    return Bar(names[row.name], median, median, slow, row.policy == FULL)


def _card(results: Results, row: BenchRow, name: str, full: BenchRow) -> Card:
    recipe = _recipe(results, row)
    picture = kept.picture(row.kept, f"what {name} keeps of the prompt, layer by layer") if row.kept else None
    parts = row.composition.split(" | ")
    return Card(name, pareto.mark(_kind(recipe)), KINDS[_kind(recipe)], parts, recipe, _beside(row, full), picture)


def _beside(row: BenchRow, full: BenchRow) -> str:
    """Say what a policy cost and gave beside full KV."""
    size, perplexity = verdict.held(row), row.quality.perplexity.value
    if row.policy == FULL:
        return f"{plain(size / MEGABYTE, 2)} MB of KV; perplexity {plain(perplexity, 2)}"
    share = verdict.ratio(size, verdict.held(full))
    first = verdict.ratio(row.timing.ttft_s.value, full.timing.ttft_s.value)
    speed, recall = row.timing.ratio_to_full.value, verdict.late_recall(row)
    words = [
        f"{percent(share)} of full KV’s bytes",
        f"{plain(speed, 2)} × its decoding speed",
        f"{plain(first, 2)} × its time to the first token",
        f"KLD {plain(row.quality.kld.value, 4)}",
        *([] if recall is None else [f"recall {percent(recall)}"]),
    ]
    return "; ".join(words)
