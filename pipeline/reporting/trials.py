"""Tables that a KV benchmark may have besides its policies: summaries, recall in dialogues, lossless decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.reporting.records import FULL, Bench, BenchRow, LosslessRow
from pipeline.reporting.table import Cell, Column, Table, build, measured, number, text, words
from pipeline.reporting.verdict import MEGABYTE

DIALOGUES = "Recall in conversations at depth {depth}"
DIALOGUES_NOTE = (
    "A patient tells facts in the first turns of a conversation that goes on to this depth; the last turn asks for "
    "one. Exact answers begin with what was told; BERT-F1 compares the answer’s first sentence with the right one, "
    "whose opening is given. KV bytes are the mean over the tokens fed, without a prompt that is read whole and then "
    "cut; brackets are 95 % intervals."
)
SUMMARIES = "Summaries at depth {depth}"
SUMMARIES_NOTE = (
    "Means over the documents, prompt and continuation. A summary that does not end within its room is cut at its last "
    "sentence. It fails if it is empty or if no sentence ends there; after two failures in a row whole sentences of "
    "the text take its place. Time is of summaries and of what is computed again behind them, as a share of the row’s "
    "whole time. The writer’s own cache is held only while it writes, and is not part of the row’s KV bytes."
)
AMORTISED = "Summaries in a conversation of about {tokens} tokens"
AMORTISED_NOTE = (
    "One conversation, as chat holds it: messages are read, replies are decoded token by token, and the next turn "
    "reads them again as history. The share is the time in which summaries were written, failed attempts among it, and "
    "entries were computed again behind them, of the whole conversation’s time: what summaries cost in the long run."
)
LOSSLESS = "Lossless decoding at depth {depth}"
LOSSLESS_NOTE = (
    "A policy drafts and full KV verifies, all in blocks of one size: the text is full KV’s own greedy text, scored in "
    "such blocks. Full KV fed one by one is rounded otherwise and may choose another token where two nearly tie; the "
    "gap is how far, at most, a token then lies below its choice. Speed is beside full KV fed one by one. Both caches "
    "are held, so that no memory is saved."
)


def tables(bench: Bench) -> list[tuple[str, Table, str]]:
    """Return heading, table and note of each that was measured."""
    asked = sorted((row for row in bench.rows if row.dialogue_recall), key=lambda row: row.policy != FULL)
    summed = [row for row in bench.rows if row.summary and row.depth == max(row.depth for row in bench.rows)]
    found = []
    if summed:
        found.append((SUMMARIES.format(depth=summed[0].depth), summaries(summed), SUMMARIES_NOTE))
    if long := [row for row in summed if row.conversation]:
        tokens = number(long[0].conversation["tokens"].value, 0).text
        found.append((AMORTISED.format(tokens=tokens), amortised(long), AMORTISED_NOTE))
    if asked:
        found.append((DIALOGUES.format(depth=asked[0].depth), dialogues(asked), DIALOGUES_NOTE))
    if bench.lossless:
        found.append((LOSSLESS.format(depth=bench.lossless[0].depth), lossless(bench.lossless), LOSSLESS_NOTE))
    return found


def summaries(rows: Sequence[BenchRow]) -> Table:
    """Return what summaries took and gave under each policy that makes any."""

    def mean(name: str, digits: int, scale: float = 1) -> Callable[[BenchRow], Cell]:
        return lambda row: measured(row.summary[name], digits, scale)

    columns = [
        words("Policy", lambda row: text(row.policy)),
        Column("Budget", lambda row: text(row.budget), "KV entries a layer may keep, the summary’s among them"),
        Column("Made", mean("made", 1), "summaries that entered the cache"),
        Column("Failed", mean("failures", 1), "times that the writer gave nothing, or too much", "lower"),
        Column("Sentences instead", mean("fallbacks", 1), "summaries of sentences after two failures", "lower"),
        Column("Entries", mean("entries", 0), "of the summary, at the end"),
        Column("Waiting", mean("waiting", 0), "evicted tokens that no summary covers yet, at the end"),
        Column("Writer’s KV, MB", mean("kv_bytes_peak", 2, 1 / MEGABYTE), "its own cache at its fullest", "lower"),
        Column("Time, %", lambda row: measured(row.timing.summary["share"], 1, 100), "of the row’s time", "lower"),
    ]
    return build(columns, rows)


def amortised(rows: Sequence[BenchRow]) -> Table:
    """Return what summaries cost each policy in one long conversation."""

    def found(name: str, digits: int, scale: float = 1) -> Callable[[BenchRow], Cell]:
        return lambda row: measured(row.conversation[name], digits, scale)

    columns = [
        words("Policy", lambda row: text(row.policy)),
        Column("Budget", lambda row: text(row.budget), "KV entries a layer may keep, the summary’s among them"),
        Column("Made", found("made", 0), "summaries that entered the cache"),
        Column("Failed", found("failures", 0), "times that the writer gave nothing, or too much", "lower"),
        Column("Retried", found("retries", 0), "times that it was asked once more", "lower"),
        Column("Sentences instead", found("fallbacks", 0), "summaries of sentences after two failures", "lower"),
        Column("Share of time, %", found("share", 1, 100), "of the whole conversation’s time", "lower"),
    ]
    return build(columns, rows)


def dialogues(rows: Sequence[BenchRow]) -> Table:
    """Return what each policy recalls of conversations."""

    def recalled(name: str, digits: int, scale: float = 1, ci: bool = False) -> Callable[[BenchRow], Cell]:
        return lambda row: measured(getattr(row.dialogue_recall, name), digits, scale, ci)

    columns = [
        words("Policy", lambda row: text(row.policy)),
        Column("Budget", lambda row: text(row.budget), "KV entries a layer may keep"),
        Column("KV, MB", recalled("kv_bytes_mean", 2, 1 / MEGABYTE), "KV cache, mean over the tokens fed", "lower"),
        Column("Exact, %", recalled("exact_match", 0, 100, ci=True), "answers that begin with the fact", "higher"),
        Column("BERT-F1", recalled("bert_f1", 3), "the answer’s first sentence against the right one", "higher"),
    ]
    return build(columns, rows)


def lossless(rows: Sequence[LosslessRow]) -> Table:
    """Return how well each policy drafts for full KV."""
    columns = [
        words("Draft", lambda row: text(row.policy)),
        Column("Budget", lambda row: text(row.budget), "KV entries a layer may keep in the draft’s cache"),
        Column("Tokens drafted", lambda row: number(row.draft_tokens, 0), "at most, for one verification"),
        Column("Accepted, %", lambda row: measured(row.acceptance, 1, 100), "drafts that full KV chose too", "higher"),
        Column("Tokens/call", lambda row: measured(row.tokens_per_call, 2), "tokens a verification gives", "higher"),
        Column("× full", lambda row: measured(row.timing["ratio_to_full"], 2), "speed beside full KV alone", "higher"),
        words("Identical", lambda row: text("yes" if row.identical else "no"), "to full KV in blocks of this size"),
        words("Fed one by one", _single, "whether full KV that is fed one by one gives the same text"),
    ]
    return build(columns, rows)


def _single(row: LosslessRow) -> Cell:
    return text("the same" if row.identical_single else f"parts, gap {row.shortfall.value:.2g} logits")
