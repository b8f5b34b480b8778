"""A KV-cache policy as a value: what happens to the prompt, what happens while tokens come, positions and precision.

A policy knows nothing of models or engines; every method of the literature is one such value, spelt out by a recipe
(recipe.py). Entries are counted by layer, since some policies give layers different sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.kv.cut import Cut
from pipeline.kv.narrowing import Narrowing
from pipeline.kv.positions import ORIGINAL, Positions
from pipeline.kv.precision import F16, Precision
from pipeline.kv.running import Running
from pipeline.kv.signals import window

GROWTH = 4  # from a summary to the next, in evicted tokens, until there are enough


@dataclass(frozen=True)
class Summary:
    """What stands for evicted text, between the sinks and all others.

    The ``model`` writes it in a small context of its own, or its sentences are drawn from the text (``extractive``), or
    its room stays empty (``none``). The first is due once ``first`` tokens have been evicted, each later one after
    several times as many, up to ``after``: what is told first enters soon, and a long text's summaries cost little.
    """

    mode: Literal["model", "extractive", "none"]
    tokens: int  # most entries, of the budget's
    after: int  # evicted tokens that make a new one due, in the long run
    first: int | None = None  # None: as later ones
    reads: int | None = None  # evicted tokens that the model sees of them at most; None: all
    shifts: bool = False  # newer entries move to make room for it; else they are computed again behind it
    precision: Precision = F16  # of the context that it is written in, where that can be held

    def due(self, made: int) -> int:
        """Return how many evicted tokens make a new one due after ``made`` of them."""
        return self.after if self.first is None else min(self.after, self.first * GROWTH**made)


@dataclass(frozen=True)
class Policy:
    """``prefill`` cuts once, at the prompt's end; ``decode`` whenever a layer exceeds its limit by more than ``slack``.

    ``online`` lets ``decode`` act while the prompt is fed as well, in blocks that end where a cut is due: the prompt
    never needs a full cache. Eviction follows the attention that saw the cache over its limit. ``reprefill`` computes
    survivors again, as if the text had never been longer. It and ``summary`` want an online policy whose layers and
    heads all hold the same tokens.
    """

    budget: int | None = None  # entries a layer may keep on average
    prefill: Cut | None = None
    decode: Cut | None = None
    online: bool = False
    narrowing: Narrowing | None = None
    positions: Positions = ORIGINAL
    precision: Precision = F16
    slack: int = 0
    summary: Summary | None = None
    reprefill: bool = False
    evicted: Literal["dropped", "host"] = "dropped"  # on the host, every entry is a candidate again at each cut

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The cuts there are."""
        return tuple(cut for cut in (self.prefill, self.decode) if cut)

    @property
    def running(self) -> Running | None:
        """What is gathered of every attention row, if anything."""
        found = [cut.scorer.signal.running for cut in self.cuts if cut.scorer and cut.scorer.signal.running]
        return found[0] if found else None

    def window(self, entries: int) -> int:
        """Return how many of the newest queries the cuts look at, among ``entries``."""
        scorers = [cut.scorer for cut in self.cuts if cut.scorer]
        return max((window(scorer.signal.queries, entries) for scorer in scorers if scorer.signal.queries), default=0)

    def room(self, lives: Sequence[int]) -> int | None:
        """Return how many tokens may come until a cut is due; None if it never is."""
        left = self.decode and self.decode.room(self.budget, lives)
        return None if left is None else max(0, left + self.slack + 1)

    def beside(self, entries: int) -> Policy:
        """Return the policy while a summary of so many entries stands behind the sinks, the rest of its room empty."""
        segments = replace(self.decode.segments, sinks=self.decode.segments.sinks + entries)
        budget = self.budget - self.summary.tokens + entries
        return replace(self, budget=budget, decode=replace(self.decode, segments=segments))

    def most_entries(self, layers: int, prompt: int, tokens: int) -> list[int]:
        """Return for each layer the most entries that live once the prompt is in, ``tokens`` tokens fed in all.

        An online policy's prompt is part of it: its cache never holds more.
        """
        return [max(sizes) for sizes in zip(*self._course(layers, prompt, tokens), strict=True)]

    def bounds(self, layers: int, prompt: int, tokens: int) -> list[int]:
        """Return the layers that hold another number of entries than the one before them, now and then."""
        course = list(self._course(layers, prompt, tokens))
        return [layer for layer in range(1, layers) if any(lives[layer] != lives[layer - 1] for lives in course)]

    def _course(self, layers: int, prompt: int, tokens: int) -> Iterator[list[int]]:
        """Yield the layers' numbers of entries before and after every cut, until they repeat or the tokens end."""
        lives, left = ([0] * layers, tokens) if self.online else (self._after(layers, prompt), tokens - prompt)
        yield lives
        known = set()
        while left and tuple(lives) not in known:
            known.add(tuple(lives))
            room = self.room(lives)
            step = left if room is None else min(left, max(1, room))
            lives, left = [live + step for live in lives], left - step
            yield lives
            if self.room(lives) == 0:
                lives = self.decode.targets(self.budget, lives)
                yield lives

    def _after(self, layers: int, prompt: int) -> list[int]:
        """Return the layers' numbers of entries once a whole prompt is in and cut."""
        lives = self.narrowing.sizes(layers, prompt, self.budget) if self.narrowing else [prompt] * layers
        for cut in self.cuts:
            lives = cut.targets(self.budget, lives)
        return lives


FULL = Policy()
