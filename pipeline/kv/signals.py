"""Signals: how much each entry of a layer matters, read off keys, queries and attention weights.

A signal returns float32 [kv_heads, group, n]: one number for every entry under each query head of its KV head, or a
group of one where query heads play no part. ``queries`` says how many of the newest queries it wants to see: a count,
a share of the entries, or none. ``running`` names what it gathers of every attention row, or is None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from pipeline.kv.evidence import Evidence, Queries
from pipeline.kv.running import Running, Sums


class Signal(Protocol):
    """What a scorer ranks entries by; more is more important."""

    queries: int | float
    running: Running | None

    def measure(self, evidence: Evidence) -> Tensor:
        """Return float32 [kv_heads, group, n]."""


class BlockSignal(Signal, Protocol):
    """A signal that ranks blocks of the text, which a host may hold: counted from the entry after the sinks."""

    block: int  # entries of one
    sinks: int

    def represent(self, keys: Tensor, sums: Tensor | None) -> Tensor:
        """Return what blocks are found by, float32 [kv_heads, blocks, head_dim] or one for all heads.

        ``keys`` are un-rotated, [kv_heads, blocks, block, head_dim]; ``sums`` is what the signal's ``running`` has
        gathered while they were in the window, [heads, blocks, block].
        """


def window(queries: int | float, entries: int) -> int:
    """Return how many queries a window is among ``entries``: a count as it is, a share rounded down, and one more."""
    return 1 + int(queries * entries) if isinstance(queries, float) else queries


@dataclass(frozen=True)
class KeyNorm:
    """The length of the key: short keys draw attention (Devoto et al., 2024, arXiv 2406.11430).

    RoPE does not change it. ``high`` keeps the long ones instead, as a control.
    """

    high: bool = False
    queries: ClassVar[int] = 0
    running: ClassVar[Running | None] = None

    def measure(self, evidence: Evidence) -> Tensor:
        """Return minus the norm of each key."""
        norms = evidence.keys().norm(dim=-1).unsqueeze(1)
        return norms if self.high else -norms


@dataclass(frozen=True)
class Chance:
    """A number drawn for every entry, anew at each cut; the same seed and text draw the same."""

    seed: int
    queries: ClassVar[int] = 0
    running: ClassVar[Running | None] = None

    def measure(self, evidence: Evidence) -> Tensor:
        """Return uniform numbers."""
        generator = torch.Generator().manual_seed(hash((self.seed, evidence.layer, evidence.seen)) % 2**63)
        return torch.rand(evidence.origins.shape, generator=generator).unsqueeze(1)


@dataclass(frozen=True)
class WindowAttention:
    """Attention weights of the newest queries on every entry, reduced over these queries.

    SnapKV (Li et al., 2024, arXiv 2404.14469), TOVA (Oren et al., 2024, arXiv 2401.06104), PyramidInfer (Yang et al.,
    2024, arXiv 2405.12532). The entries' keys are read once, at the cut; nothing is kept between cuts.
    """

    queries: int | float
    reduce: Callable[[Tensor], Tensor]  # [group, w, n] -> [group, n]
    running: ClassVar[Running | None] = None

    def measure(self, evidence: Evidence) -> Tensor:
        """Return the reduced weights."""
        queries = evidence.queries.last(window(self.queries, evidence.seen))
        keys = evidence.keys()
        heads = range(len(keys))  # one after another: the rows of all heads at once would fill the memory
        return torch.stack([self.reduce(evidence.attention(queries, head, keys)) for head in heads])


@dataclass(frozen=True)
class RunningAttention:
    """What attention rows have brought each entry since it came: a sum, a mean, or a count of hits."""

    running: Running
    queries: ClassVar[int] = 0

    def measure(self, evidence: Evidence) -> Tensor:
        """Return what the running scorer has gathered."""
        return evidence.sums.view(len(evidence.origins), -1, evidence.entries)


@dataclass(frozen=True)
class LastLogit:
    """q.k of the newest query, without scale or softmax: GemFilter (Shi et al., 2024, arXiv 2409.17422)."""

    queries: ClassVar[int] = 1
    running: ClassVar[Running | None] = None

    def measure(self, evidence: Evidence) -> Tensor:
        """Return the logits."""
        newest, keys = evidence.queries.last(1), evidence.keys()
        return torch.stack([evidence.logits(newest, head, keys)[:, 0] for head in range(len(keys))])


@dataclass(frozen=True)
class BlockSimilarity:
    """Cosine between the newest queries' mean and the mean key of each block, both un-rotated and centred.

    On rotated keys a cosine would measure distance. Keys share a large mean, which would drown the differences:
    it is taken off. Blocks are counted from the entry after the sinks; a last, shorter block is one as well. Of blocks
    on a host the means are at hand.
    """

    block: int
    queries: int
    sinks: int = 0
    running: ClassVar[Running | None] = None

    def measure(self, evidence: Evidence) -> Tensor:
        """Return each entry's block's cosine, the same for all heads."""
        if evidence.blocks is not None:
            means = evidence.blocks[0]
            return spread(self._cosines(means - means.mean(0), evidence), evidence, self)
        keys = evidence.rope.rotate(evidence.keys(), -evidence.positions).mean(0)
        block = block_index(evidence.entries, self.block, self.sinks)
        means = torch.zeros(int(block[-1]) + 1, keys.shape[-1]).index_add_(0, block, keys)
        means /= torch.bincount(block).unsqueeze(1)
        cosines = self._cosines(means - keys.mean(0), evidence)
        return cosines[block].expand(len(evidence.origins), 1, -1)

    def represent(self, keys: Tensor, sums: Tensor | None) -> Tensor:
        """Return the mean of each block's keys over all heads."""
        return keys.mean((0, 2)).unsqueeze(0)

    def _cosines(self, means: Tensor, evidence: Evidence) -> Tensor:
        query = _plain(evidence.queries.last(self.queries), evidence).mean((0, 1))
        return torch.nn.functional.cosine_similarity(means, query.unsqueeze(0), dim=-1)


@dataclass(frozen=True)
class Representatives:
    """q.k of the newest queries' mean with each block on a host, summed over heads.

    A block's key is the mean of those ``keys`` of it that drew most attention while they were in the window, in each
    KV head: InfLLM (Xiao et al., 2024, arXiv 2402.04617). It is turned to where the block would stand, so that all
    blocks that a clamp puts at one distance are measured at that distance.
    """

    block: int
    queries: int
    keys: int
    sinks: int = 0
    running: ClassVar[Running | None] = Sums

    def measure(self, evidence: Evidence) -> Tensor:
        """Return each entry's block's logit, the same for all heads."""
        blocks, queries = evidence.blocks, evidence.queries.last(self.queries)
        middle = self.sinks + self.block // 2 + torch.arange(blocks.shape[1]) * self.block
        away = evidence.positions[:1, middle] - (queries.positions[-1] + 1)
        mean = _plain(queries, evidence).mean(1).view(len(blocks), -1, blocks.shape[-1])
        logits = torch.einsum("kgd,kbd->b", mean, evidence.rope.rotate(blocks, away.expand(len(blocks), -1)))
        return spread(logits, evidence, self)

    def represent(self, keys: Tensor, sums: Tensor | None) -> Tensor:
        """Return the mean of the keys with the largest sums; of equals the newer counts."""
        drawn = sums.view(len(keys), -1, *keys.shape[1:3]).sum(1)
        best = drawn.flip(-1).argsort(dim=-1, descending=True, stable=True)[..., : self.keys]
        index = (self.block - 1 - best).unsqueeze(-1).expand(-1, -1, -1, keys.shape[-1])
        return keys.gather(2, index).mean(2)


def _plain(queries: Queries, evidence: Evidence) -> Tensor:
    """Return the un-rotated queries [heads, w, head_dim]."""
    return evidence.rope.rotate(queries.vectors, -queries.positions)


def block_index(entries: int, block: int, sinks: int) -> Tensor:
    """Return the block of every entry, int64 [entries]; sinks belong to the first."""
    return (torch.arange(entries) - sinks).clamp(min=0) // block


def spread(scores: Tensor, evidence: Evidence, signal: BlockSignal) -> Tensor:
    """Return float32 [kv_heads, 1, n]: for each entry the score of its block, if that is on the host.

    What stands behind the last of these blocks always stays: the window, and a block that is about to leave it.
    """
    values = torch.full((evidence.entries,), torch.inf)
    values[signal.sinks :][: len(scores) * signal.block] = scores.repeat_interleave(signal.block)
    return values.expand(len(evidence.origins), 1, -1)


def total(rows: Tensor) -> Tensor:
    """Return the sum over queries."""
    return rows.sum(1)


@dataclass(frozen=True)
class RisingMean:
    """A mean over queries whose weights rise from 1 to ``most``, the newest weighing most."""

    most: float

    def __call__(self, rows: Tensor) -> Tensor:
        """Return [group, n] of rows [group, w, n]."""
        weights = torch.linspace(1.0, self.most, rows.shape[1])
        return torch.einsum("gwn,w->gn", rows, weights) / rows.shape[1]
