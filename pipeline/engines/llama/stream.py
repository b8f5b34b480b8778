"""One sequence decoded under a KV-cache policy: tokens go in, entries that the policy evicts leave the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.engines.llama.context import Context
from pipeline.kv.policy import Policy


class Stream:
    """Sequence 0 of a context, fed under a policy.

    Eviction follows the attention that brought the cache over its limit, so a token sees what it replaces. The prompt
    is fed by the same rule: an online policy evicts while it prefills, in blocks that end where a cut is due.
    """

    def __init__(self, context: Context, policy: Policy):
        """Start with an empty cache; the context must hold ``policy.most_entries`` cells."""
        context.clear()
        self._context = context
        self._policy = policy
        self._next = 0
        self.positions = np.empty(0, np.int64)  # of the live entries, oldest first
        self.peak = 0  # most entries that lived at once

    @property
    def live(self) -> int:
        """Entries in the cache."""
        return len(self.positions)

    def feed(self, ids: Sequence[int], *, every: bool = False) -> np.ndarray:
        """Append tokens; return float32 logits [n, vocabulary] after ``every`` one of them, or after the last."""
        scores = []
        fed = 0
        while fed < len(ids):
            block = ids[fed : fed + self._room()]
            fed += len(block)
            wanted = np.full(len(block), every)
            wanted[-1] |= fed == len(ids)
            scores.append(self._append(block, wanted))
        return np.concatenate(scores)

    def _room(self) -> int:
        room = self._policy.room(self.live)
        return self._context.n_batch if room is None else min(room, self._context.n_batch)

    def _append(self, block: Sequence[int], wanted: np.ndarray) -> np.ndarray:
        positions = np.arange(self._next, self._next + len(block))
        scores = self._context.decode(block, positions, wanted=wanted).copy()
        self.positions = np.append(self.positions, positions)
        self._next += len(block)
        self.peak = max(self.peak, self.live)
        self._cut(self._policy.evicted(self.live))
        return scores

    def _cut(self, gone: range) -> None:
        if not gone:
            return
        start, stop = self.positions[gone.start], self.positions[gone.stop - 1] + 1
        self._context.remove(start, stop)
        self.positions = np.delete(self.positions, gone)
        if self._policy.positions == "compact":
            self._context.shift(stop, self._next, start - stop)
            self._next = self.live
            self.positions = np.arange(self.live)
