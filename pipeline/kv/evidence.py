"""Evidence: what a scorer may look at when entries of one layer have to go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.kv.rope import Rope


@dataclass(frozen=True)
class Queries:
    """The newest queries of one layer, oldest first, after RoPE."""

    vectors: Tensor  # float32 [heads, w, head_dim]
    positions: Tensor  # int64 [w], where RoPE has placed them
    origins: Tensor  # int64 [w], the tokens they belong to

    def last(self, count: int) -> Queries:
        """Return the newest ``count`` of them, or all if there are fewer."""
        first = max(0, len(self.origins) - count)
        return Queries(self.vectors[:, first:], self.positions[first:], self.origins[first:])

    def joined(self, newer: Queries) -> Queries:
        """Return these with newer ones behind."""
        return Queries(
            torch.cat([self.vectors, newer.vectors], dim=1),
            torch.cat([self.positions, newer.positions]),
            torch.cat([self.origins, newer.origins]),
        )


@dataclass(frozen=True)
class Evidence:
    """One layer's n entries, oldest first in every KV head; an entry may stem from another token in each head."""

    layer: int
    seen: int  # tokens fed so far, evicted ones included
    origins: Tensor  # int64 [kv_heads, n], the token an entry stems from
    positions: Tensor  # int64 [kv_heads, n], where RoPE has placed its key
    keys: Callable[[], Tensor]  # float32 [kv_heads, n, head_dim], after RoPE
    rope: Rope
    queries: Queries | None = None
    sums: Tensor | None = None  # float32 [heads, n], what a running scorer has gathered
    blocks: Tensor | None = None  # float32 [kv_heads or 1, blocks, head_dim], un-rotated: what a host finds blocks by

    @property
    def entries(self) -> int:
        """Entries a KV head holds."""
        return self.origins.shape[1]

    def logits(self, queries: Queries, head: int, keys: Tensor) -> Tensor:
        """Return float32 q.k [group, w, n] of one KV head, without scale and mask."""
        group = queries.vectors.shape[0] // self.origins.shape[0]
        return queries.vectors[head * group : (head + 1) * group] @ keys[head].T

    def attention(self, queries: Queries, head: int, keys: Tensor) -> Tensor:
        """Return the attention weights [group, w, n] of some queries on one KV head's entries, causal."""
        scaled = replace(queries, vectors=queries.vectors / math.sqrt(keys.shape[-1]))
        scores = self.logits(scaled, head, keys)
        origins = self.origins[head]
        seen_by_all = int((origins <= queries.origins[0]).sum())  # later ones stand behind: the mask is for them alone
        scores[..., seen_by_all:].masked_fill_(origins[seen_by_all:] > queries.origins[:, None], -torch.inf)
        return torch.softmax(scores, dim=-1)
