"""Narrowing: tokens of the prompt that later layers never see, so that prefilling them is spared.

After some layers the prompt's tokens are ranked by what that layer shows, and the best go on. ``input`` scope starts
again from the first layer with the survivors at positions 0, 1, 2 ...; ``hidden`` scope goes on with their states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pipeline.kv.evidence import Evidence
from pipeline.kv.scorer import Scorer
from pipeline.kv.segments import Segments
from pipeline.kv.selectors import top

Scope = Literal["hidden", "input"]


class Schedule(Protocol):
    """After which layers how many tokens go on."""

    def stops(self, layers: int, tokens: int, recent: int, budget: int) -> list[tuple[int, int]]:
        """Return (layer, tokens that go on after it), layers rising and tokens falling."""


@dataclass(frozen=True)
class AtLayer:
    """Once, at a share of the depth, a share of the tokens goes on, and never fewer than the budget.

    FastKV (Jo et al., 2025, arXiv 2502.01068) and, with a share of 0, GemFilter (arXiv 2409.17422).
    """

    depth: float
    share: float

    def stops(self, layers: int, tokens: int, recent: int, budget: int) -> list[tuple[int, int]]:
        """Return the one stop; none if everything would go on."""
        layer = min(layers - 2, max(0, int(self.depth * layers) - 1))
        going_on = max(int(self.share * tokens), budget)
        return [(layer, going_on)] if going_on < tokens else []


@dataclass(frozen=True)
class CosineCascade:
    """After every layer a share of the older tokens goes on that falls along a cosine from 1 to ``least``.

    PyramidInfer (Yang et al., 2024, arXiv 2405.12532). Shares multiply from layer to layer. ``least`` None takes the
    one whose layers hold the budget on average, or 0 where even that holds more.
    """

    least: float | None
    min_context: int = 64  # fewer older tokens than these all go on

    def stops(self, layers: int, tokens: int, recent: int, budget: int) -> list[tuple[int, int]]:
        """Return a stop after every layer but the last."""
        least = self._fitted(layers, tokens, recent, budget) if self.least is None else self.least
        return list(enumerate(self._sizes(least, layers, tokens, recent)[1:]))

    def _sizes(self, least: float, layers: int, tokens: int, recent: int) -> list[int]:
        sizes = [tokens]
        for layer in range(layers - 1):
            older = sizes[-1] - recent
            share = (1 - least) * (math.cos(math.pi * layer / layers) + 1) / 2 + least
            sizes.append(recent + (int(older * share) if int(older * share) > self.min_context else older))
        return sizes

    def _fitted(self, layers: int, tokens: int, recent: int, budget: int) -> float:
        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            fits = sum(self._sizes(middle, layers, tokens, recent)) <= layers * budget
            low, high = (middle, high) if fits else (low, middle)
        return low


@dataclass(frozen=True)
class Narrowing:
    """A schedule and how tokens are ranked at its stops; ``recent`` as a float is a share of the prompt."""

    scope: Scope
    schedule: Schedule
    segments: Segments
    scorer: Scorer

    def stops(self, layers: int, tokens: int, budget: int) -> list[tuple[int, int]]:
        """Return (layer, tokens that go on after it) for a prompt of ``tokens``; nothing stops within the budget."""
        return [] if tokens <= budget else self.schedule.stops(layers, tokens, self.recent(tokens), budget)

    def sizes(self, layers: int, tokens: int, budget: int) -> list[int]:
        """Return how many tokens of a prompt each layer holds in the end."""
        stops = self.stops(layers, tokens, budget)
        if self.scope == "input":
            return [stops[0][1] if stops else tokens] * layers
        going_on, sizes = dict(stops), []
        for layer in range(layers):
            sizes.append(tokens)
            tokens = going_on.get(layer, tokens)
        return sizes

    def first_reading(self, layers: int, tokens: int, budget: int) -> list[int]:
        """Return how many entries each layer holds when the first stop is reached, of a prompt that is read again."""
        stops = self.stops(layers, tokens, budget)
        if self.scope == "hidden" or not stops:
            return self.sizes(layers, tokens, budget)
        return [tokens if layer <= stops[0][0] else 0 for layer in range(layers)]

    def recent(self, tokens: int) -> int:
        """Return how many of the newest tokens of a prompt of ``tokens`` always go on."""
        share = self.segments.recent
        return 1 + int(share * tokens) if isinstance(share, float) else share

    def keep(self, evidence: Evidence, going_on: int, recent: int) -> Tensor:
        """Return int64 [going_on], the tokens that go on, rising."""
        sinks = min(self.segments.sinks, going_on - recent)
        scores = self.scorer.scores(evidence, self.segments, recent)[:1, sinks:]
        middle = sinks + top(scores, going_on - sinks - recent, 0)[0]
        newest = torch.arange(evidence.entries - recent, evidence.entries)
        return torch.cat([torch.arange(sinks), middle, newest])
