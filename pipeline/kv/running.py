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


def _grown(old: Tensor | None, rows: Tensor) -> Tensor:
    """Return ``old`` [heads, n'] with zeros for the entries that came with ``rows``."""
    if old is None:
        return rows.new_zeros(rows.shape[0], rows.shape[2])
    return torch.nn.functional.pad(old, (0, rows.shape[2] - old.shape[-1]))


def _kept(values: Tensor, keep: Tensor) -> Tensor:
    """Return [heads, ..., m] of [heads, ..., n]: each query head follows its KV head's choice."""
    index = keep.repeat_interleave(values.shape[0] // keep.shape[0], dim=0)
    for _ in range(values.ndim - 2):
        index = index.unsqueeze(1)
    return values.gather(-1, index.expand(*values.shape[:-1], keep.shape[1]))


@dataclass
class Sums:
    """Column sums of attention since an entry came: H2O (Zhang et al., 2023, arXiv 2306.14048)."""

    sums: Tensor | None = None

    def observe(self, rows: Tensor) -> None:
        """Add each entry's weights."""
        self.sums = _grown(self.sums, rows).add_(rows.sum(1))

    def value(self) -> Tensor:
        """Return the sums."""
        return self.sums

    def gather(self, keep: Tensor) -> None:
        """Keep the sums of the survivors; those of the evicted are lost."""
        self.sums = _kept(self.sums, keep)

    def size_bytes(self) -> int:
        """Return the bytes of the sums."""
        return 0 if self.sums is None else self.sums.nbytes


@dataclass
class Means:
    """Mean attention since an entry came: TreeKV (He et al., 2025, arXiv 2501.04987)."""

    sums: Sums = field(default_factory=Sums)
    counts: Tensor | None = None  # rows that saw the entry, [heads, n]

    def observe(self, rows: Tensor) -> None:
        """Add each entry's weights, and one for each row that could see it."""
        self.sums.observe(rows)
        self.counts = _grown(self.counts, rows).add_(_visible(rows).sum(0))

    def value(self) -> Tensor:
        """Return the means."""
        return self.sums.value() / self.counts

    def gather(self, keep: Tensor) -> None:
        """Keep sums and counts of the survivors."""
        self.sums.gather(keep)
        self.counts = _kept(self.counts, keep)

    def size_bytes(self) -> int:
        """Return the bytes of sums and counts."""
        return 2 * self.sums.size_bytes()


@dataclass
class Hits:
    """How often, in the last ``history`` rows, an entry drew more than an even share of its row.

    Scissorhands (Liu et al., 2023, arXiv 2305.17118). Its listing marks low weights, its text and figures keep the
    entries that matter: high weights are counted here. An even share is one over the entries that a row sees.
    """

    history: int
    rows: Tensor | None = None  # bool [heads, w, n]

    def observe(self, rows: Tensor) -> None:
        """Note the hits of new rows and forget those beyond the history."""
        recent = rows[:, -self.history :]
        visible = _visible(rows).sum(1)[-self.history :]
        hits = recent > 1.0 / visible[:, None]
        if self.rows is not None:
            old = torch.nn.functional.pad(self.rows, (0, rows.shape[2] - self.rows.shape[2]))
            hits = torch.cat([old, hits], dim=1)[:, -self.history :]
        self.rows = hits

    def value(self) -> Tensor:
        """Return the counts."""
        return self.rows.sum(1).float()

    def gather(self, keep: Tensor) -> None:
        """Keep the hits of the survivors."""
        self.rows = _kept(self.rows, keep)

    def size_bytes(self) -> int:
        """Return the bytes of the hits."""
        return 0 if self.rows is None else self.rows.nbytes


def _visible(rows: Tensor) -> Tensor:
    """Return which entries each row sees, float32 [w, n]: all older ones, and of the rows' own those up to itself."""
    count, entries = rows.shape[1:]
    if count == 1:
        return rows.new_ones(1, entries)
    return torch.ones(count, entries).tril(entries - count)
