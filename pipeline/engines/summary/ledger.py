"""Ledger: every evicted token, either waiting for the next summary or covered by what was written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

ENTRY_BYTES = 24  # id, origin and weight


@dataclass(frozen=True)
class Passage:
    """Tokens of a text in its order, and what each weighed when it was last in the cache; more is more important."""

    ids: tuple[int, ...] = ()
    origins: tuple[int, ...] = ()  # where they stand in the text
    weights: tuple[float, ...] = ()
    generation: int = 0  # of a summary: how often its oldest words have been written anew; 0 is the text itself

    def __len__(self) -> int:
        return len(self.ids)

    def __deepcopy__(self, memo: dict) -> Passage:
        """Return the passage itself: nothing in it changes, and every checkpoint copies what waits."""
        return self

    def joined(self, other: Passage) -> Passage:
        """Return both, in text order."""
        if not self.origins or not other.origins or self.origins[-1] < other.origins[0]:
            return Passage(self.ids + other.ids, self.origins + other.origins, self.weights + other.weights)
        parts = [zip(one.origins, one.ids, one.weights, strict=True) for one in (self, other)]
        rows = sorted(row for part in parts for row in part)
        origins, ids, weights = zip(*rows, strict=True)
        return Passage(ids, origins, weights)


@dataclass
class Ledger:
    """What was evicted: ``waiting`` for the next summary, and the origins that the present one stands for."""

    waiting: Passage = field(default_factory=Passage)
    covered: tuple[range, ...] = ()
    generation: int = 0  # of the present summary

    @property
    def empty(self) -> bool:
        """Whether nothing has been evicted."""
        return not self.waiting.ids and not self.covered

    def add(self, evicted: Passage) -> None:
        """Take in what a cut has evicted."""
        self.waiting = self.waiting.joined(evicted)

    def settle(self) -> None:
        """Note that what waited is covered now."""
        self.cover(self.waiting.origins)
        self.waiting = Passage()

    def cover(self, origins: Sequence[int]) -> None:
        """Note that these tokens are covered."""
        self.covered = spans(self.covered, origins)

    def size_bytes(self) -> int:
        """Return the bytes of what waits, and of the covered spans' ends."""
        return ENTRY_BYTES * len(self.waiting) + 16 * len(self.covered)


def spans(old: Iterable[range], numbers: Sequence[int]) -> tuple[range, ...]:
    """Return disjoint spans, rising, of old ones and new numbers; neighbours are merged."""
    merged: list[range] = []
    for span in sorted([*old, *(range(number, number + 1) for number in numbers)], key=lambda span: span.start):
        if merged and merged[-1].stop == span.start:
            merged[-1] = range(merged[-1].start, span.stop)
        else:
            merged.append(span)
    return tuple(merged)
