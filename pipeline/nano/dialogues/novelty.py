"""Near-duplicate rejection: exact Jaccard similarity of character 5-grams, behind a bitmap filter.

The filter is a bound, so nothing similar passes: grams are hashed to bits, and two sets share at most the bits they
have in common plus the grams that lost their own bit to a collision (Sandes et al., "Bitmap filter", 2020).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

GRAM = 5
BITS = 2048


@dataclass(frozen=True)
class Shingles:
    """The character 5-grams of a text, their bitmap, and how many grams share another's bit."""

    grams: frozenset[str]
    bitmap: int
    lost: int


def shingles(text: str) -> Shingles:
    """Return the set of character 5-grams of ``text``; a shorter text is one gram."""
    grams = frozenset(text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1)))
    bitmap = 0
    for gram in grams:
        bitmap |= 1 << zlib.crc32(gram.encode()) % BITS
    return Shingles(grams, bitmap, len(grams) - bitmap.bit_count())


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the size of the intersection over that of the union."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


@dataclass
class Seen:
    """Texts accepted so far, asked whether another is at least ``bound`` similar to one of them."""

    bound: float
    texts: list[Shingles] = field(default_factory=list)

    def near(self, new: Shingles) -> bool:
        """Return whether any accepted text has a Jaccard similarity of ``bound`` or more with ``new``."""
        share = self.bound / (1 + self.bound)  # |A & B| >= share * (|A| + |B|) is the same as Jaccard >= bound
        size, bitmap, lost = len(new.grams), new.bitmap, new.lost
        return any(
            (old.bitmap & bitmap).bit_count() + lost >= share * (size + len(old.grams))
            and jaccard(old.grams, new.grams) >= self.bound
            for old in self.texts
        )

    def add(self, new: Shingles) -> None:
        """Remember an accepted text."""
        self.texts.append(new)
