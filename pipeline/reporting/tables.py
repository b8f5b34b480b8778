"""The tables of results: encodings, KV policies, data. Each is a list of columns; HTML and Markdown print the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pipeline.reporting import verdict
from pipeline.reporting.load import REFERENCES, Results
from pipeline.reporting.measured import Measure
from pipeline.reporting.records import FULL, SEEN, UNSEEN, Bench, BenchRow, Speed
from pipeline.reporting.table import ABSENT, Cell, Column, Table, build, measured, number, plain, text, words
from pipeline.reporting.verdict import MEGABYTE

SIMULATED = "simulated on CPU"


def scoreboard(results: Results, marked: list[str | None]) -> Table:
    """Return base, merged and every encoding on the same token ids and dialogues."""

    def metric(name: str, digits: int, scale: float = 1, ci: bool = False) -> Callable[[str], Cell]:
        return lambda cell: measured(getattr(results.quality[cell].metrics, name), digits, scale, ci)

    columns = [
        words("Model", text),
        Column("Size, MB", lambda cell: _size(results, cell), "weights on disk, 10⁶ bytes", "lower", bar=True),
        Column("Bits/weight", lambda cell: _bits(results, cell), "bits of storage a weight takes"),
        Column("PPL", metric("perplexity", 2), "perplexity of the reference answers ± standard error", "lower"),
        Column("ΔPPL", lambda cell: _above(results, cell), "perplexity above the merged model’s"),
        Column("KLD", metric("kld", 4), "mean KL divergence from the merged model, nats a token", "lower"),
        Column("Same top, %", metric("same_top", 1, 100), "tokens with the merged model’s first choice", "higher"),
        Column("BERT-F1", metric("bert_f1", 4, ci=True), "answers against references, 95 % interval", "higher"),
        Column("Floor", lambda cell: _floor(results, cell), "BERT-F1 against shuffled references"),
        Column("Ended, %", metric("ended", 1, 100), "answers that end by themselves", "higher"),
        Column("Tok/s", lambda cell: _speed(results, cell), "llama.cpp: the test set at once; one stream", "higher"),
    ]
    return build(columns, results.quality, marked=lambda cell: cell in marked)


def _size(results: Results, cell: str) -> Cell:
    return number(verdict.size(results, cell) / MEGABYTE, 1)


def _bits(results: Results, cell: str) -> Cell:
    return Cell(ABSENT) if cell in REFERENCES else measured(results.quantized[cell].bits_per_weight, 2)


def _above(results: Results, cell: str) -> Cell:
    own, merged = (results.quality[name].metrics.perplexity.value for name in (cell, "merged"))
    return number(own - merged, 2, signed=True)


def _floor(results: Results, cell: str) -> Cell:
    return number(results.quality[cell].metrics.bert_f1_shuffled.value, 4)


def _speed(results: Results, cell: str) -> Cell:
    """Return the speed of llama.cpp on this CPU: answering the test set in one batch, and one stream where benched."""
    if cell in REFERENCES:
        return Cell(ABSENT)
    if not verdict.is_gguf(results, cell):
        return Cell(ABSENT, SIMULATED)
    rate = results.timings[f"evaluate@{cell}"].generation_tokens_per_second
    return replace(Cell(ABSENT) if rate is None else number(rate, 0), detail=_one_stream(results, cell))


def _one_stream(results: Results, cell: str) -> str:
    if cell not in results.bench:
        return ""
    rows = [row for row in results.bench[cell].rows if row.policy == FULL]
    return f"one stream {plain(min(rows, key=lambda row: row.depth).timing.tokens_per_second.value, 0)}"


def front(rows: list[BenchRow], full: BenchRow, marked: BenchRow | None) -> Table:
    """Return what to take for how much memory: rows in ascending order of KV bytes, each better than those before."""
    columns = [
        words("Take", lambda row: text(row.name)),
        Column("KV, MB", lambda row: number(verdict.held(row) / MEGABYTE, 2), "keys and values while decoding"),
        Column("of full KV, %", lambda row: number(100 * _share(row, full), 0), "KV bytes while decoding"),
        Column("Peak, MB", lambda row: number(row.kv_bytes_peak.value / MEGABYTE, 2), "KV cache at its largest"),
        Column("KLD", lambda row: measured(row.quality.kld, 4), "divergence from full KV, nats a token", "lower"),
        Column("Same top, %", lambda row: measured(row.quality.same_top, 1, 100), "as under full KV", "higher"),
        Column("× full", lambda row: measured(row.timing.ratio_to_full, 2), "decoding speed beside full KV", "higher"),
    ]
    if any(row.recall for row in rows):
        columns.append(Column("Recall, %", _recall, "early facts answered rightly, mean over kinds of task", "higher"))
    return build(columns, rows, marked=lambda row: marked is not None and row.name == marked.name)


def _share(row: BenchRow, full: BenchRow) -> float:
    return verdict.ratio(verdict.held(row), verdict.held(full))


def policies(bench: Bench, depth: int, marked: BenchRow | None) -> Table:
    """Return every policy at one depth, full KV first; recall where it was measured."""
    rows = rows_at(bench, depth)

    def timing(name: str, digits: int, scale: float = 1) -> Callable[[BenchRow], Cell]:
        return lambda row: measured(getattr(row.timing, name), digits, scale)

    def kept(name: str, digits: int, scale: float = 1) -> Callable[[BenchRow], Cell]:
        return lambda row: measured(getattr(row.quality, name), digits, scale)

    hosted = [Column("Host, MB", _host, "keys and values in host memory that may come back, beside the cache", "lower")]
    columns = [
        words("Policy", lambda row: text(row.policy)),
        Column("Budget", lambda row: text(row.budget), "KV entries a layer may keep"),
        Column("Entries", lambda row: measured(row.entries, 0), "KV entries at the end, mean over layers"),
        Column("KV, MB", _kv, "KV cache while decoding, and at its largest", "lower"),
        *(hosted if any(row.host_bytes.value for row in rows) else []),
        Column("TTFT, s", timing("ttft_s", 3), "time to the first token, the cut included", "lower"),
        Column("TPOT, ms", _tpot, "time per output token, median and 95th percentile", "lower"),
        Column("× full", timing("ratio_to_full", 2), "speed beside full KV in the same run", "higher"),
        Column("PPL", kept("perplexity", 2), "perplexity of continued text", "lower"),
        Column("KLD", kept("kld", 4), "divergence from full KV, nats a token", "lower"),
        Column("Same top, %", kept("same_top", 1, 100), "most likely token as under full KV", "higher"),
    ]
    if any(row.recall for row in rows):
        columns.append(Column("Recall, %", _recall, "early facts answered rightly, mean over kinds of task", "higher"))
    return build(columns, rows, marked=lambda row: marked is not None and row.name == marked.name)


def recall(bench: Bench, depth: int, marked: BenchRow | None) -> Table | None:
    """Return the share of right answers to each kind of task at one depth; None where nothing was asked."""
    rows = rows_at(bench, depth)
    kinds = dict.fromkeys(kind for row in rows for kind in row.recall)
    if not kinds:
        return None

    def asked(kind: str, sight: str) -> Callable[[BenchRow], Cell]:
        return lambda row: _warm(row.recall.get(kind, {}).get(sight))

    columns = [
        words("Policy", lambda row: text(row.policy)),
        Column("Budget", lambda row: text(row.budget), "KV entries a layer may keep"),
    ]
    for kind in kinds:
        columns += [
            Column(f"{kind}, %", asked(kind, SEEN), "the question is read before the cut", "higher"),
            Column(f"{kind} unseen, %", asked(kind, UNSEEN), "the question comes after the cut", "higher"),
        ]
    return build(columns, rows, marked=lambda row: marked is not None and row.name == marked.name)


def _warm(found: Measure | None) -> Cell:
    """Return a share with its interval; its height as a colour too, so that a column reads as a heat map."""
    if found is None:
        return Cell(ABSENT)
    return replace(measured(found, 0, 100, ci=True), heat=found.value if found.finite else None)


def rows_at(bench: Bench, depth: int) -> list[BenchRow]:
    """Return the rows of one depth, full KV first."""
    return sorted((row for row in bench.rows if row.depth == depth), key=lambda row: row.policy != FULL)


def _recall(row: BenchRow) -> Cell:
    if row.recall_seen is None:
        return Cell(ABSENT)
    unseen = row.recall_unseen
    return number(100 * row.recall_seen, 0, detail="" if unseen is None else f"unseen {plain(100 * unseen, 0)}")


def speed(measured_speed: Speed) -> Table:
    """Return decoding speed at a real model's shape: every policy at every depth and encoding."""
    columns = [
        words("Encoding", lambda row: text(row.encoding)),
        Column("Depth", lambda row: number(row.depth, 0), "prompt tokens"),
        words("Policy", lambda row: text(row.policy)),
        words("FA", lambda row: text(row.flash_attention), "flash attention while decoding"),
        Column("KV, MB", lambda row: measured(row.kv_bytes, 1, 1 / MEGABYTE), "KV cache while decoding", "lower"),
        Column("TPOT, ms", lambda row: measured(row.tpot_ms_median, 1), "time per output token, median", "lower"),
        Column("× full", lambda row: measured(row.ratio_to_full, 2), "speed beside the best full KV", "higher"),
    ]
    return build(columns, [row for row in measured_speed.rows if row.figure == "decode"])


def bounds(measured_speed: Speed) -> Table:
    """Return what was expected of the policies' costs, and what was measured."""
    columns = [
        words("Expected", lambda bound: text(bound.what)),
        Column("Measured", lambda bound: measured(bound.value, 3)),
        Column("Bound", lambda bound: number(bound.bound, 2)),
        words("Holds", lambda bound: text("yes" if bound.holds else "no")),
    ]
    return build(columns, measured_speed.bounds)


def _kv(row: BenchRow) -> Cell:
    peak = plain(row.kv_bytes_peak.value / MEGABYTE, 2)
    return number(row.kv_bytes_final.value / MEGABYTE, 2, detail=f"peak {peak}")


def _host(row: BenchRow) -> Cell:
    return measured(row.host_bytes, 2, 1 / MEGABYTE) if row.host_bytes.value else Cell(ABSENT)


def _tpot(row: BenchRow) -> Cell:
    return number(row.timing.tpot_ms_median.value, 2, detail=f"p95 {plain(row.timing.tpot_ms_p95.value, 2)}")


def splits(results: Results) -> Table:
    """Return the sizes of the splits."""
    columns = [
        words("Split", lambda pair: text(pair[0])),
        Column("Dialogues", lambda pair: number(pair[1].dialogues, 0)),
        Column("Turns", lambda pair: number(pair[1].turns, 0)),
        Column("Multi-turn, %", lambda pair: number(100 * pair[1].multi_turn_share, 1)),
        Column("Tokens", lambda pair: number(pair[1].tokens.total, 0)),
        Column("Median", lambda pair: number(pair[1].tokens.p50, 0)),
        Column("Longest", lambda pair: number(pair[1].tokens.p100, 0)),
    ]
    return build(columns, results.chat.splits.items())


def drops(results: Results) -> Table:
    """Return how many raw lines were dropped for which reason."""
    columns = [
        words("Dropped because", lambda pair: text(pair[0].replace("_", " "))),
        Column("Lines", lambda pair: number(pair[1], 0)),
    ]
    return build(columns, ((reason, count) for reason, count in results.chat.dropped.items() if count))
