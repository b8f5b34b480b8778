"""Positions: where the survivors of a cut stand, and where the next token goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Positions(Protocol):
    """A rule that places survivors."""

    shifts: bool  # whether keys have to be rotated anew

    def place(self, old: Sequence[Tensor], upcoming: int) -> tuple[list[Tensor], int]:
        """Return new positions for each layer's old ones, int64 [kv_heads, m], and the next token's position."""


@dataclass(frozen=True)
class Original:
    """Every entry keeps its place in the text; beyond the trained length it breaks as full KV does."""

    shifts: bool = False

    def place(self, old: Sequence[Tensor], upcoming: int) -> tuple[list[Tensor], int]:
        """Return everything as it was."""
        return list(old), upcoming


ORIGINAL = Original()


@dataclass(frozen=True)
class Compact:
    """Survivors close ranks, so that positions never exceed what the cache holds: StreamingLLM (arXiv 2309.17453).

    Where layers hold unequal numbers, they end at the same position, next to the coming token.
    """

    shifts: bool = True

    def place(self, old: Sequence[Tensor], upcoming: int) -> tuple[list[Tensor], int]:
        """Return consecutive positions that end at the longest layer's length."""
        end = max(positions.shape[1] for positions in old)
        return [torch.arange(end - p.shape[1], end).expand_as(p) for p in old], end


@dataclass(frozen=True)
class Clamped:
    """No entry stands farther away than ``limit``; order is lost among the distant ones.

    LM-Infinite (Han et al., 2023, arXiv 2308.16137). Between two cuts the distance grows by a token at a time, at
    most by the slack.
    """

    limit: int
    shifts: bool = True

    def place(self, old: Sequence[Tensor], upcoming: int) -> tuple[list[Tensor], int]:
        """Return the positions, those farther than the limit moved up to it."""
        return [positions.clamp(min=upcoming - self.limit) for positions in old], upcoming
