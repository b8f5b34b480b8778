"""Running scorers: what is gathered of every attention row, entry by entry, while the cache lives.

``observe`` takes the attention weights of new queries, oldest first: float32 [heads, w, n], n entries of which the
last w are the queries' own. ``gather`` follows a cut. All keep one number or more for every query head and entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Memory(Protocol):
    """What one layer has gathered."""

    def observe(self, rows: Tensor) -> None:
        """Take in the rows of new queries."""

    def value(self) -> Tensor:
        """Return float32 [heads, n]."""

    def gather(self, keep: Tensor) -> None:
        """Follow a cut that keeps entries int64 [kv_heads, m]."""

    def size_bytes(self) -> int:
        """Return the bytes it takes."""


Running = Callable[[], Memory]

AHEAD = 64  # entries that room is taken for at once


@dataclass
class Column:
    """Numbers [heads, n, ...] that grow with the entries, which come one by one: room is taken for many at once."""

    room: Tensor | None = None
    entries: int = 0

    @property
    def view(self) -> Tensor:
        """The numbers."""
        return self.room[:, : self.entries]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return 0 if self.room is None else self.view.nbytes

    def grown(self, heads: int, entries: int, *others: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a view [heads, entries, ...] with zeros for the new entries; ``others`` are the lengths behind."""
        if self.room is None or entries > self.room.shape[1]:
            room = torch.zeros(heads, entries + AHEAD, *others, dtype=dtype)
            if self.room is not None:
                room[:, : self.entries] = self.view
            self.room = room
        self.entries = entries
        return self.view

    def gather(self, keep: Tensor) -> None:
        """Keep entries int64 [kv_heads, m] of each head; every query head follows its KV head."""
        if self.room is None:
            return
        heads, cells = self.room.shape[:2]
        index = keep.repeat_interleave(heads // len(keep), dim=0) + cells * torch.arange(heads).unsqueeze(1)
        kept = self.room.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, *self.room.shape[2:])
        self.room, self.entries = kept, kept.shape[1]


@dataclass
class Sums:
    """Column sums of attention since an entry came: H2O (Zhang et al., 2023, arXiv 2306.14048)."""

    sums: Column = field(default_factory=Column)

    def observe(self, rows: Tensor) -> None:
        """Add each entry's weights."""
        heads, count, entries = rows.shape
        self.sums.grown(heads, entries).add_(rows[:, 0] if count == 1 else rows.sum(1))

    def value(self) -> Tensor:
        """Return the sums."""
        return self.sums.view

    def gather(self, keep: Tensor) -> None:
        """Keep the sums of the survivors; those of the evicted are lost."""
        self.sums.gather(keep)

    def size_bytes(self) -> int:
        """Return the bytes of the sums."""
        return self.sums.nbytes


@dataclass
class Means:
    """Mean attention since an entry came: TreeKV (He et al., 2025, arXiv 2501.04987)."""

    sums: Sums = field(default_factory=Sums)
    counts: Column = field(default_factory=Column)  # rows that saw the entry, [heads, n]

    def observe(self, rows: Tensor) -> None:
        """Add each entry's weights, and one for each row that could see it."""
        self.sums.observe(rows)
        heads, count, entries = rows.shape
        self.counts.grown(heads, entries).add_(1 if count == 1 else _visible(rows).sum(0))

    def value(self) -> Tensor:
        """Return the means."""
        return self.sums.value() / self.counts.view

    def gather(self, keep: Tensor) -> None:
        """Keep sums and counts of the survivors."""
        self.sums.gather(keep)
        self.counts.gather(keep)

    def size_bytes(self) -> int:
        """Return the bytes of sums and counts."""
        return self.sums.size_bytes() + self.counts.nbytes


@dataclass
class Hits:
    """How often, in the last ``history`` rows, an entry drew more than an even share of its row.

    Scissorhands (Liu et al., 2023, arXiv 2305.17118). Its listing marks low weights, its text and figures keep the
    entries that matter: high weights are counted here. An even share is one over the entries that a row sees.
    The rows stand in a ring, so that a new one costs itself and the one it replaces.
    """

    history: int
    ring: Column = field(default_factory=Column)  # uint8 [heads, n, history]
    counts: Column = field(default_factory=Column)  # int32 [heads, n]
    seen: int = 0  # rows so far

    def observe(self, rows: Tensor) -> None:
        """Note the hits of new rows and forget those beyond the history."""
        heads, count, entries = rows.shape
        recent = rows[:, -self.history :].transpose(1, 2)
        hits = recent > 1.0 / _visible(rows).sum(1)[-self.history :]
        self.seen += count
        places = torch.arange(self.seen - hits.shape[2], self.seen) % self.history
        ring = self.ring.grown(heads, entries, self.history, dtype=torch.uint8)
        counts = self.counts.grown(heads, entries, dtype=torch.int32)
        counts += hits.sum(2, dtype=torch.int32) - ring[:, :, places].sum(2, dtype=torch.int32)
        ring[:, :, places] = hits.to(torch.uint8)

    def value(self) -> Tensor:
        """Return the counts."""
        return self.counts.view.float()

    def gather(self, keep: Tensor) -> None:
        """Keep the hits of the survivors."""
        self.ring.gather(keep)
        self.counts.gather(keep)

    def size_bytes(self) -> int:
        """Return the bytes of the hits and their counts."""
        return self.ring.nbytes + self.counts.nbytes


def _visible(rows: Tensor) -> Tensor:
    """Return which entries each row sees, float32 [w, n]: all older ones, and of the rows' own those up to itself."""
    count, entries = rows.shape[1:]
    if count == 1:
        return rows.new_ones(1, entries)
    return torch.ones(count, entries).tril(entries - count)
