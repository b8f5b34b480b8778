"""Scorer: a signal, smoothed along the cache, reduced over heads to the shape that a set of survivors has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.kv.evidence import Evidence
from pipeline.kv.segments import Segments
from pipeline.kv.signals import Signal, block_index

Share = Literal["head", "layer", "model"]  # who keeps one set: each KV head, all heads of a layer, the whole model
Smoothing = Callable[[Tensor, Segments], Tensor]  # [..., candidates] -> the same shape
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda values: values.mean(1),
    "sum": lambda values: values.sum(1),
    "max": lambda values: values.amax(1),
}


@dataclass(frozen=True)
class Pool:
    """A sliding mean or maximum over ``width`` neighbours. Zeros beyond the ends count in the mean if ``padded``.

    The published code counts them, which puts the first entries, sinks among them, at a disadvantage.
    """

    kind: Literal["average", "maximum"]
    width: int
    padded: bool = True

    def __call__(self, values: Tensor, segments: Segments) -> Tensor:
        """Return the pooled scores of the candidates."""
        flat, half = values.flatten(0, -2).unsqueeze(1), self.width // 2
        if self.kind == "maximum":
            return F.max_pool1d(flat, self.width, 1, half).view(values.shape)
        return F.avg_pool1d(flat, self.width, 1, half, count_include_pad=self.padded).view(values.shape)


@dataclass(frozen=True)
class Blocks:
    """Each entry scores as its block of ``size`` does on average, so that whole stretches of text stay."""

    size: int

    def __call__(self, values: Tensor, segments: Segments) -> Tensor:
        """Return each candidate's block's mean."""
        block = block_index(values.shape[-1], self.size, segments.sinks)
        sums = values.new_zeros(*values.shape[:-1], int(block[-1]) + 1).index_add_(-1, block, values)
        return (sums / torch.bincount(block))[..., block]


@dataclass(frozen=True)
class Scorer:
    """How candidates are ranked. Smoothing comes before the heads of a group are reduced: with a maximum it matters."""

    signal: Signal
    smoothing: Smoothing | None
    group: str  # a key of REDUCTIONS: over the query heads of a KV head
    share: Share

    def scores(self, evidence: Evidence, segments: Segments, recent: int) -> Tensor:
        """Return float32 [kv_heads, n - recent]: the ranks of all entries but the newest ``recent``."""
        values = self.signal.measure(evidence)[..., : evidence.entries - recent]
        if self.smoothing and values.shape[-1]:
            values = self.smoothing(values, segments)
        reduced = REDUCTIONS[self.group](values)
        return reduced if self.share == "head" else reduced.mean(0, keepdim=True).expand_as(reduced)
