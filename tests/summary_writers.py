"""Writers whose text is known beforehand, for streams whose summaries are to be told from what they do with them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.engines.summary.ledger import Passage
from pipeline.engines.summary.writer import Writer, Written


@dataclass
class Told:
    """Writes the given texts one after another, then from the first again, and notes what it was asked."""

    texts: Sequence[Sequence[int]]
    asked: list[tuple[Passage, Passage]] = field(default_factory=list)

    def write(self, old: Passage, evicted: Passage, most: int, again: bool = False) -> Written:
        self.asked.append((old, evicted))
        return Written(tuple(self.texts[(len(self.asked) - 1) % len(self.texts)]))


@dataclass
class Behind:
    """Lets another writer work, in a thread or not, and gives a known text in place of what that found."""

    other: Writer
    told: Told
    threaded: bool = False
    found: list[Written] = field(default_factory=list)

    def write(self, old: Passage, evicted: Passage, most: int, again: bool = False) -> Written:
        if self.threaded:
            with ThreadPoolExecutor(1) as pool:
                self.found.append(pool.submit(self.other.write, old, evicted, most).result())
        else:
            self.found.append(self.other.write(old, evicted, most))
        return self.told.write(old, evicted, most)
