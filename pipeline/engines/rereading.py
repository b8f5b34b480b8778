"""Streams that know the token of every entry, so that entries can be computed again behind others than before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.cache import Cache, KvEngine
from pipeline.engines.snapshot import Snapshot, evict
from pipeline.engines.stream import Mark, Stream
from pipeline.kv.policy import Policy

ID_BYTES = 8


class TextStream(Stream):
    """A stream whose entries are the same tokens in all layers and heads, at consecutive positions: a shorter text."""

    def __init__(self, engine: KvEngine, cache: Cache, policy: Policy):
        super().__init__(engine, cache, policy)
        self._prefix = policy.decode.segments.sinks  # entries that never change
        self._ids: list[int] = []  # of all entries

    @property
    def entry_ids(self) -> list[int]:
        """The tokens of the living entries, oldest first."""
        return list(self._ids)

    def state_bytes(self) -> int:
        """Return the bytes of what is kept beside keys and values, token ids included."""
        return super().state_bytes() + ID_BYTES * len(self._ids)

    def take(self, prompt: Snapshot) -> None:
        """Refuse: a prompt prefilled elsewhere does not tell its tokens."""
        raise ValueError("a stream that computes entries again must be fed its prompt; make the policy online")

    def rewind(self, mark: Mark) -> None:
        """Take back the tokens that came after ``mark``, as :meth:`Stream.rewind` says."""
        count = self.seen - mark.seen
        super().rewind(mark)
        self._ids = self._ids[: len(self._ids) - count]

    def _beside(self) -> Any:
        """Return the tokens of all entries."""
        return list(self._ids)

    def _take_beside(self, beside: Any) -> None:
        """Take back what :meth:`_beside` gave."""
        self._ids = beside

    def _append(self, block: Sequence[int], every: bool) -> np.ndarray:
        self._ids += block
        return super()._append(block, every)

    def _cut(self) -> None:
        policy, state = self._policy, self.snapshot()
        self._write(evict(state, policy.decode, policy.budget, policy.positions, self._rope))
        stays = torch.isin(state.origins[0][0], self._origins[0][0])
        ids, self._ids = self._ids, [self._ids[index] for index in stays.nonzero()[:, 0].tolist()]
        self._evicted(state, ids, ~stays)

    def _evicted(self, before: Snapshot, ids: Sequence[int], gone: Tensor) -> None:
        """Follow a cut; ``ids`` are the tokens of all entries before it, ``gone``, bool [n], those that it took."""

    def _reread(self, ids: Sequence[int], origins: Tensor) -> None:
        """Keep the prefix bit for bit and compute ``ids`` behind it; ``origins``, int64 [n], are all entries' then."""
        state, count = self.snapshot(), self._prefix
        self._write(replace(state.part(0, count), queries=[], seen=count, upcoming=count))
        self._ids = self._ids[:count]
        attended = self.attended
        for first in range(0, len(ids), self._cache.block):
            self._append(ids[first : first + self._cache.block], False)
        self.aside.tokens += len(ids)
        self.aside.attended += self.attended - attended
        self.attended = attended
        again = self.snapshot()
        queries = [replace(layer, origins=origins[layer.origins]) for layer in again.queries]  # so far counted from 0
        self._write(replace(again, origins=self._for_all(origins), queries=queries, seen=state.seen))

    def _for_all(self, numbers: Tensor) -> list[Tensor]:
        """Return int64 [n] as every layer's [kv_heads, n]."""
        heads = len(self._origins[0])
        return [numbers.expand(heads, -1)] * len(self._origins)


class RereadStream(TextStream):
    """A stream whose survivors are computed again after each cut: what follows is as if they had been all the text."""

    def _evicted(self, before: Snapshot, ids: Sequence[int], gone: Tensor) -> None:
        self._reread(self._ids[self._prefix :], self._origins[0][0])
