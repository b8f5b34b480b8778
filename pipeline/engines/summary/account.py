"""Account: what the summaries of a stream have cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.engines.summary.writer import Written


@dataclass
class Account:
    """What summaries have cost so far."""

    made: int = 0  # summaries that entered the cache
    failures: int = 0  # times that a writer gave nothing, or too much
    retries: int = 0  # times that it was asked once more
    fallbacks: int = 0  # summaries of sentences in place of a second failure
    computed: int = 0  # tokens that writers ran through the model
    written: int = 0  # tokens of summaries that entered the cache
    writing: float = 0.0  # seconds
    inserting: float = 0.0  # seconds
    waiting: int = 0  # evicted tokens that no summary covers, now
    entries: int = 0  # of the summary, now
    kv_bytes: int = 0  # of a writer's own cache, at its fullest
    kind: str = ""  # type of that cache

    def add(self, found: Written, seconds: float) -> None:
        """Take in what a writer has done."""
        self.computed += found.computed
        self.writing += seconds
        self.kv_bytes = max(self.kv_bytes, found.kv_bytes)
        self.kind = found.kind or self.kind
