"""Allocators: how many entries each layer may hold, given the budget: entries a layer on average.

``limits`` says above how many entries a cut is due, ``targets`` how many it leaves of those that live.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol


class Allocator(Protocol):
    """The sizes of a model's layers under one budget."""

    def limits(self, budget: int, layers: int) -> list[int]:
        """Return for each layer the entries above which a cut is due."""

    def targets(self, budget: int, lives: Sequence[int]) -> list[int]:
        """Return for each layer the entries that stay, of those that live."""


class Fixed:
    """Sizes that cuts return to: a layer's limit is its target."""

    def targets(self, budget: int, lives: Sequence[int]) -> list[int]:
        """Return the limits, or what lives."""
        return [min(size, live) for size, live in zip(self.limits(budget, len(lives)), lives, strict=True)]


@dataclass(frozen=True)
class Uniform(Fixed):
    """The budget for every layer."""

    def limits(self, budget: int, layers: int) -> list[int]:
        """Return the budget for each layer."""
        return [budget] * layers


@dataclass(frozen=True)
class KeepRatio:
    """Above the budget a share of the entries stays, rounded up; the cache swings between the two.

    l2_compress (Devoto et al., 2024, arXiv 2406.11430), whose ``prune_after`` is the budget.
    """

    ratio: float

    def limits(self, budget: int, layers: int) -> list[int]:
        """Return the budget for each layer."""
        return [budget] * layers

    def targets(self, budget: int, lives: Sequence[int]) -> list[int]:
        """Return the share of what lives where that is above the budget; of long prompts the budget's share stays."""
        return [math.ceil(self.ratio * budget) if live > budget else live for live in lives]


@dataclass(frozen=True)
class ArithmeticPyramid:
    """Budgets that fall linearly from the first layer to the last: PyramidKV (Cai et al., 2024, arXiv 2406.02069).

    ``window`` entries of each layer's budget are its newest ones and stand outside the pyramid. The step is whole, so
    that the mean lies a little above the budget. Where the widest layer would want more than there is, it is clipped
    and the last one raised; texts of less than twice the budget get the same for every layer.
    """

    beta: int
    window: int

    def limits(self, budget: int, layers: int) -> list[int]:
        """Return the pyramid of a long text."""
        return self._sizes(budget, layers, None)

    def targets(self, budget: int, lives: Sequence[int]) -> list[int]:
        """Return the pyramid, clipped to what lives."""
        sizes = self._sizes(budget, len(lives), max(lives))
        return [min(size, live) for size, live in zip(sizes, lives, strict=True)]

    def _sizes(self, budget: int, layers: int, entries: int | None) -> list[int]:
        free = budget - self.window
        if entries is not None and entries < 2 * free:
            return [budget] * layers
        least = free // self.beta
        most = 2 * free - least
        if entries is not None and most >= entries - self.window:
            most = entries - self.window
            least = 2 * free - most
        step = (most - least) // max(1, layers - 1)
        return [most - layer * step + self.window for layer in range(layers)]


@dataclass(frozen=True)
class Decay(Fixed):
    """Budgets that fall by a factor from layer to layer, down to ``least``: seed profile "exponential".

    The first layer's size is the largest whose layers are the budget on average.
    """

    factor: float
    least: int

    def limits(self, budget: int, layers: int) -> list[int]:
        """Return the profile."""
        least = min(self.least, budget)

        def sizes(base: int) -> list[int]:
            return [max(least, int(base * self.factor**layer)) for layer in range(layers)]

        return _fitted(sizes, budget * layers)


@dataclass(frozen=True)
class Linear(Fixed):
    """Budgets that change linearly from the first layer to the last, ``last`` times the budget: a mean of the budget.

    Below 1 the first layers hold more, as in a pyramid; above 1 the last ones, as in Scissorhands.
    """

    last: float

    def limits(self, budget: int, layers: int) -> list[int]:
        """Return the profile."""
        first = 2 - self.last
        slope = (self.last - first) / max(1, layers - 1)
        return [int(budget * (first + layer * slope)) for layer in range(layers)]


@dataclass(frozen=True)
class Dropping:
    """Another allocator whose cuts drop a share of the entries at once: Scissorhands (arXiv 2305.17118) drops half."""

    sizes: Allocator
    drop: float

    def limits(self, budget: int, layers: int) -> list[int]:
        """Return the other's limits."""
        return self.sizes.limits(budget, layers)

    def targets(self, budget: int, lives: Sequence[int]) -> list[int]:
        """Return what is left of the limit after the drop, where more lives."""
        limits = self.limits(budget, len(lives))
        return [
            limit - int(self.drop * limit) if live > limit else live for limit, live in zip(limits, lives, strict=True)
        ]


@dataclass(frozen=True)
class Falling:
    """Between a soft and a hard limit the share that stays falls linearly; above it a fixed target stays.

    The limits and the target are multiples of the budget; the soft limit is what always stays.
    """

    hard: float
    target: float
    high: float
    low: float

    def limits(self, budget: int, layers: int) -> list[int]:
        """Return the soft limit for each layer."""
        return [budget] * layers

    def targets(self, budget: int, lives: Sequence[int]) -> list[int]:
        """Return what stays of each layer."""
        return [self._target(budget, live) for live in lives]

    def _target(self, soft: int, live: int) -> int:
        hard = int(self.hard * soft)
        if live <= soft:
            return live
        if live > hard:
            return min(live, int(self.target * soft))
        ratio = self.high + (self.low - self.high) * (live - soft) / (hard - soft)
        return max(int(live * ratio), soft)


def _fitted(sizes, most: int) -> list[int]:
    """Return ``sizes(base)`` for the largest base whose sum is at most ``most``."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(sizes(middle)) <= most else (low, middle - 1)
    return sizes(low)


def grouped(sizes: Sequence[int], groups: int) -> list[int]:
    """Return sizes that differ between at most ``groups`` runs of layers, each run at its mean.

    An engine that holds layers in a few caches needs it; the sum changes by rounding down alone.
    """
    if len(set(sizes)) <= 1 or len(_runs(sizes)) <= groups:
        return list(sizes)
    bounds = [round(group * len(sizes) / groups) for group in range(groups + 1)]
    runs = [sizes[a:b] for a, b in pairwise(bounds)]
    return [sum(run) // len(run) for run in runs for _ in run]


def _runs(sizes: Sequence[int]) -> list[int]:
    """Return where a new size begins."""
    return [layer for layer in range(len(sizes)) if layer == 0 or sizes[layer] != sizes[layer - 1]]
