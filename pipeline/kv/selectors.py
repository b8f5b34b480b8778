"""Selectors: scores of candidates become the indices of those that stay, in cache order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Selector = Callable[[Tensor, int, int], Tensor]
"""(scores [kv_heads, c], how many stay, how many entries have been evicted before) -> indices [kv_heads, m], rising."""


def top(scores: Tensor, stay: int, evicted: int) -> Tensor:
    """Return the ``stay`` best of each head; of equals the newer stays."""
    order = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)[:, :stay]
    return (scores.shape[1] - 1 - order).sort(dim=-1).values


def cyclic_pairs(scores: Tensor, stay: int, evicted: int) -> Tensor:
    """Return what is left after neighbours have competed pair by pair, the pair moving on by one after each eviction.

    TreeKV (He et al., 2025, arXiv 2501.04987). The cycle is as long as the cache it leaves: its listing skips some
    pairs, its text and figure do not. A tie goes to the right one. Old entries thin out more and more.
    """
    index = torch.arange(scores.shape[1]).expand_as(scores)
    while stay and index.shape[1] > stay:
        left = evicted % stay
        pairs = min(index.shape[1] - stay, stay - left)  # one after another until the cycle ends: none meets twice
        rivals = index[:, left : left + 2 * pairs]
        first, second = scores.gather(1, rivals).unflatten(1, (pairs, 2)).unbind(2)
        winners = torch.where(first > second, rivals[:, ::2], rivals[:, 1::2])
        index = torch.cat([index[:, :left], winners, index[:, left + 2 * pairs :]], dim=1)
        evicted += pairs
    return index[:, :stay]
