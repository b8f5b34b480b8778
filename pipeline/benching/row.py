"""The rows of a benchmark: what trials gave, as measured numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.benching.plan import Case
from pipeline.benching.trial import Trial
from pipeline.metrics import divergence, perplexity, softmax, speed, uncertainty
from pipeline.metrics.measure import measure

FLASH = {False: "off", True: "on"}
BINS = 32  # of the picture of what was kept


@dataclass
class Tally:
    """What one case gave under one setting of flash attention: one trial, and values for each token, a document."""

    trials: list[Trial] = field(default_factory=list)
    nll: list[np.ndarray] = field(default_factory=list)
    top1: list[np.ndarray] = field(default_factory=list)
    kld: list[np.ndarray] = field(default_factory=list)
    same_top: list[np.ndarray] = field(default_factory=list)

    def add(self, one: Trial, logits: np.ndarray, full: np.ndarray, ids: Sequence[int]) -> None:
        """Take in a trial, its predictions of ``ids`` and those of full KV."""
        self.trials.append(one)
        self.nll.append(softmax.token_nll(logits, np.asarray(ids)))
        self.top1.append(logits.argmax(axis=-1) == np.asarray(ids))
        self.kld.append(divergence.kld(full, logits))
        self.same_top.append(divergence.same_top(full, logits))

    @property
    def seconds(self) -> np.ndarray:
        """Times of all timed tokens."""
        return np.concatenate([one.tokens for one in self.trials])


def row(case: Case, depth: int, by_flash: dict[bool, Tally], full_seconds: float) -> dict:
    """Return the record of one case: quality under its first setting of flash attention, speed under its fastest.

    The choice of the fastest is a timing; quality is not to depend on it.
    """
    first = next(iter(by_flash.values()))
    flash, fastest = min(by_flash.items(), key=lambda item: np.median(item[1].seconds))
    last = first.trials[-1]
    return {
        "policy": case.name,
        "composition": case.composition,
        "depth": depth,
        "budget": case.budget,
        "entries": measure(float(np.mean(last.entries)), unit="entries"),
        "entries_peak": measure(float(np.mean(last.entries_peak)), unit="entries"),
        "entries_by_layer": last.entries,
        "kv_bytes_peak": measure(last.kv_bytes_peak, unit="bytes", better="lower"),
        "kv_bytes_final": measure(last.kv_bytes, unit="bytes", better="lower"),
        "state_bytes": measure(last.state_bytes, unit="bytes", better="lower"),
        "host_bytes": measure(last.host_bytes, unit="bytes", better="lower"),
        "flops": {
            "prefill": measure(float(last.flops_prefill), unit="FLOP", better="lower"),
            "token": measure(float(last.flops_token), unit="FLOP", better="lower"),
        },
        "quality": {
            "perplexity": perplexity.perplexity(first.nll),
            "top1": share(first.top1),
            "kld": divergence.mean_kld(first.kld),
            "same_top": divergence.mean_same_top(first.same_top),
        },
        "timing": _timing(fastest, flash, by_flash, full_seconds),
        "kept": picture(first.trials[0].kept, depth),
    } | (_summary(first.trials) if last.summary else {})


def _timing(fastest: Tally, flash: bool, by_flash: dict[bool, Tally], full_seconds: float) -> dict:
    ratio = full_seconds / np.median(fastest.seconds)
    summary = {"summary": _summary_timing(fastest.trials)} if fastest.trials[0].summary else {}
    return summary | {
        "flash_attention": FLASH[flash],
        "ttft_s": speed.first_token([one.prefill + one.compress for one in fastest.trials]),
        "prefill_s": speed.first_token([one.prefill for one in fastest.trials]),
        "compress_s": speed.first_token([one.compress for one in fastest.trials]),
        "tpot_ms_median": speed.median_token(fastest.seconds),
        "tpot_ms_p95": speed.slow_token(fastest.seconds),
        "tokens_per_second": speed.rate([one.tokens for one in fastest.trials]),
        "ratio_to_full": measure(ratio, unit="x full KV", better="higher"),
        "tpot_ms_by_flash_attention": {
            FLASH[setting]: speed.median_token(tally.seconds) for setting, tally in by_flash.items()
        },
    }


def _summary(trials: Sequence[Trial]) -> dict:
    """Return what summaries took and gave, a document."""
    accounts = [one.summary for one in trials]

    def mean(name: str, unit: str) -> dict:
        return measure(float(np.mean([getattr(account, name) for account in accounts])), unit=unit)

    figures = {
        "made": mean("made", "summaries"),
        "failures": mean("failures", "failures"),
        "fallbacks": mean("fallbacks", "summaries"),
        "computed": mean("computed", "tokens"),
        "written": mean("written", "tokens"),
        "waiting": mean("waiting", "tokens"),
        "entries": mean("entries", "entries"),
        "kv_bytes_peak": measure(max(account.kv_bytes for account in accounts), unit="bytes", better="lower"),
    }
    return {"summary": figures, "summary_kv_type": accounts[-1].kind}


def _summary_timing(trials: Sequence[Trial]) -> dict:
    """Return the seconds of all documents that summaries took, and their share of all."""
    writing, inserting = (sum(getattr(one.summary, name) for one in trials) for name in ("writing", "inserting"))
    share = (writing + inserting) / sum(one.seconds for one in trials)
    return {
        "writing_s": measure(writing, unit="s", better="lower"),
        "inserting_s": measure(inserting, unit="s", better="lower"),
        "share": measure(share, unit="share", better="lower"),
    }


def picture(kept: Sequence[np.ndarray], depth: int) -> list[list[float]]:
    """Return for each layer the share of the prompt's tokens, in equal stretches, whose entries live at the end."""
    edges = np.linspace(0, depth, BINS + 1)
    sizes = np.histogram(np.arange(depth), edges)[0]
    return [
        (np.histogram(origins[origins < depth], edges)[0] / (len(origins) * np.maximum(sizes, 1))).round(2).tolist()
        for origins in kept
    ]


def share(hits: Sequence[np.ndarray]) -> dict:
    """Return the share of all tokens that hit; one array of booleans a document."""
    sums, counts = [np.sum(tokens) for tokens in hits], [len(tokens) for tokens in hits]
    return uncertainty.ratio_measure(sums, counts, unit="share", better="higher")
