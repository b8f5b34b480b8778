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
    return torch.tensor([_competed(head, stay, evicted) for head in scores.tolist()], dtype=torch.long)


def _competed(scores: list[float], stay: int, evicted: int) -> list[int]:
    index = list(range(len(scores)))
    for turn in range(evicted, evicted + len(scores) - stay):
        left = turn % stay if stay else 0
        loser = left + 1 if scores[left] > scores[left + 1] else left
        del scores[loser], index[loser]
    return index
