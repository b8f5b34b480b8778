"""Running scorers: what is gathered of every attention row, entry by entry, while the cache lives.

``observe`` takes the attention weights of new queries, oldest first: float32 [heads, w, n], n entries of which the
last w are the queries' own. ``gathered`` follows a cut. All keep one number or more for every query head and entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Memory(Protocol):
    """What one layer has gathered."""

    def observe(self, rows: Tensor) -> None:
        """Take in the rows of new queries."""

    def value(self) -> Tensor:
        """Return float32 [heads, n]."""

    def gathered(self, keep: Tensor) -> Memory:
        """Return it after a cut that keeps entries int64 [kv_heads, m], apart from this one."""

    def size_bytes(self) -> int:
        """Return the bytes it takes."""


Running = Callable[[], Memory]

AHEAD = 64  # entries that room is taken for at once
BITS = 8  # of a byte


@dataclass
class Column:
    """Numbers [..., heads, n] that grow with the entries, which come one by one: room is taken for many at once."""

    room: Tensor | None = None
    entries: int = 0

    @property
    def view(self) -> Tensor:
        """The numbers."""
        return self.room[..., : self.entries]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return 0 if self.room is None else self.view.nbytes

    def grown(self, *lengths: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a view of these ``lengths``, the entries last, with zeros for the new ones."""
        *others, entries = lengths
        if self.room is None or entries > self.room.shape[-1]:
            room = torch.zeros(*others, entries + AHEAD, dtype=dtype)
            if self.room is not None:
                room[..., : self.entries] = self.view
            self.room = room
        self.entries = entries
        return self.view

    def gathered(self, keep: Tensor) -> Column:
        """Return the entries int64 [kv_heads, m] of each head; every query head follows its KV head."""
        if self.room is None:
            return Column()
        index = keep.repeat_interleave(self.room.shape[-2] // len(keep), dim=0)
        kept = self.room.gather(-1, index.expand(*self.room.shape[:-1], -1))
        return Column(kept, kept.shape[-1])


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

    def gathered(self, keep: Tensor) -> Sums:
        """Return the sums of the survivors; those of the evicted are lost."""
        return Sums(self.sums.gathered(keep))

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

    def gathered(self, keep: Tensor) -> Means:
        """Return sums and counts of the survivors."""
        return Means(self.sums.gathered(keep), self.counts.gathered(keep))

    def size_bytes(self) -> int:
        """Return the bytes of sums and counts."""
        return self.sums.size_bytes() + self.counts.nbytes


@dataclass
class Hits:
    """How often, in the last ``history`` rows, an entry drew more than an even share of its row.

    Scissorhands (Liu et al., 2023, arXiv 2305.17118). Its listing marks low weights, its text and figures keep the
    entries that matter: high weights are counted here. An even share is one over the entries that a row sees.
    The rows stand in a ring, a bit each, so that a new one costs itself and the one it replaces.
    """

    history: int
    ring: Column = field(default_factory=Column)  # uint8 [history / 8, heads, n]
    seen: int = 0  # rows so far

    def observe(self, rows: Tensor) -> None:
        """Note the hits of new rows in place of those beyond the history."""
        heads, count, entries = rows.shape
        ring = self.ring.grown(-(-self.history // BITS), heads, entries, dtype=torch.uint8)
        for row in range(max(0, count - self.history), count):
            plane, bit = divmod((self.seen + row) % self.history, BITS)
            hits = rows[:, row] > 1.0 / (entries - count + row + 1)
            ring[plane].bitwise_and_(~(1 << bit) & 0xFF).add_(hits, alpha=1 << bit)
        self.seen += count

    def value(self) -> Tensor:
        """Return the counts."""
        return torch.from_numpy(np.bitwise_count(self.ring.view.numpy()).sum(0, dtype=np.float32))

    def gathered(self, keep: Tensor) -> Hits:
        """Return the hits of the survivors."""
        return Hits(self.history, self.ring.gathered(keep), self.seen)

    def size_bytes(self) -> int:
        """Return the bytes of the hits."""
        return self.ring.nbytes


def _visible(rows: Tensor) -> Tensor:
    """Return which entries each row sees, float32 [w, n]: all older ones, and of the rows' own those up to itself."""
    count, entries = rows.shape[1:]
    if count == 1:
        return rows.new_ones(1, entries)
    return torch.ones(count, entries).tril(entries - count)
