"""Cut: segments, scorer, selector and allocator together decide which entries of every layer stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.kv.allocators import Allocator, grouped
from pipeline.kv.evidence import Evidence
from pipeline.kv.scorer import Scorer
from pipeline.kv.segments import Segments
from pipeline.kv.selectors import Selector


@dataclass(frozen=True)
class Cut:
    """One rule of eviction. Without a scorer the segments alone stay, the newest entries filling the budget."""

    segments: Segments
    scorer: Scorer | None
    select: Selector
    allocator: Allocator
    skip: frozenset[int] = frozenset()  # layers that keep everything
    runs: int = 8  # sizes differ between at most so many runs of layers: engines hold each in a cache of its own

    def room(self, budget: int, lives: Sequence[int]) -> int | None:
        """Return how many tokens may come before a layer's mean exceeds the budget; None if every layer is whole.

        The budget is an average, so it is the mean that is compared: until it is reached nothing goes, however
        little some layers are to hold.
        """
        active, level = _level(self, budget, len(lives))
        return -(-(level * len(active) - sum(lives[layer] for layer in active)) // len(active)) if active else None

    def limits(self, budget: int, layers: int) -> list[int | None]:
        """Return for each layer the entries that it holds before a cut; None for those that keep everything."""
        sizes = iter(self._sizes(self.allocator.limits(budget, len(self.active(layers)))))
        return [None if layer in self.skip else next(sizes) for layer in range(layers)]

    def targets(self, budget: int, lives: Sequence[int]) -> list[int]:
        """Return for each layer how many of the entries that live would stay: all within the budget."""
        active = self.active(len(lives))
        if not active or self.room(budget, lives) >= 0:
            return list(lives)
        sizes = iter(self._sizes(self.allocator.targets(budget, [lives[layer] for layer in active])))
        return [live if layer in self.skip else min(live, next(sizes)) for layer, live in enumerate(lives)]

    def active(self, layers: int) -> list[int]:
        """Return the layers that are cut."""
        return [layer for layer in range(layers) if layer not in self.skip]

    def _sizes(self, sizes: list[int]) -> list[int]:
        return grouped(sizes, self.runs)

    def keep(self, layers: Sequence[Evidence], targets: Sequence[int]) -> list[Tensor]:
        """Return for each layer int64 [kv_heads, target], the indices that stay, rising in every head."""
        if self.scorer and self.scorer.share == "model":
            scores = [self._scores(evidence, target) for evidence, target in zip(layers, targets, strict=True)]
            mean = torch.stack(scores).mean(0)
            return [self._chosen(e, target, mean) for e, target in zip(layers, targets, strict=True)]
        return [self._chosen(e, target, self._scores(e, target)) for e, target in zip(layers, targets, strict=True)]

    def _scores(self, evidence: Evidence, target: int) -> Tensor | None:
        if not self.scorer or target == evidence.entries:
            return None
        return self.scorer.scores(evidence, self.segments, self._recent(target))

    def _recent(self, target: int) -> int:
        return self.segments.recent_of(target) if self.scorer else target - min(target, self.segments.sinks)

    def _chosen(self, evidence: Evidence, target: int, scores: Tensor | None) -> Tensor:
        heads, entries = evidence.origins.shape
        if target == entries:
            return torch.arange(entries).expand(heads, -1)
        recent = self._recent(target)
        sinks = min(self.segments.sinks, target - recent)
        middle = torch.empty(heads, 0, dtype=torch.long)
        if scores is not None:
            stay = target - sinks - recent
            middle = sinks + self.select(scores[:, sinks:], stay, evidence.seen - entries)
        first = torch.arange(sinks).expand(heads, -1)
        newest = torch.arange(entries - recent, entries).expand(heads, -1)
        return torch.cat([first, middle, newest], dim=1)


@lru_cache
def _level(cut: Cut, budget: int, layers: int) -> tuple[list[int], int]:
    """Return the layers that are cut and the entries a layer that they hold on average; asked for at every token."""
    active = cut.active(layers)
    limits = grouped(cut.allocator.limits(budget, len(active)), cut.runs) if active else [0]
    return active, max(budget, -(-sum(limits) // len(limits)))  # rounding may put the mean above the budget
