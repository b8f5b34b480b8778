"""Rotary position embedding (Su et al., 2021): keys and queries moved from one position to another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Rope:
    """Rotation of the first ``dims`` values of a head: frequency i turns by position * theta ** (-2 i / dims)."""

    theta: float
    dims: int
    interleaved: bool = False  # pairs stand side by side; else the two halves of the rotated values are paired

    def rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Return float32 ``vectors`` [..., n, head_dim] turned by ``positions`` [..., n]; negative ones turn back.

        Rotations add up: turning by a difference moves a key from its old position to a new one.
        """
        return self.turn(vectors, self.angles(positions))

    def angles(self, positions: Tensor) -> Angles:
        """Return cosines and sines [..., n, dims / 2], computed once for each position that occurs."""
        half = self.dims // 2
        frequencies = self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        different, index = _different(positions)
        angles = different.double().unsqueeze(-1) * frequencies  # float32 would blur positions in the thousands
        return angles.cos().float()[index], angles.sin().float()[index]

    def turn(self, vectors: Tensor, angles: Angles) -> Tensor:
        """Return ``vectors`` turned by angles that :meth:`angles` gave."""
        half = self.dims // 2
        cos, sin = angles
        turned, rest = vectors[..., : self.dims], vectors[..., self.dims :]
        if self.interleaved:
            first, second = turned[..., 0::2], turned[..., 1::2]
            pairs = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
            return torch.cat([pairs.flatten(-2), rest], dim=-1)
        first, second = turned[..., :half], turned[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _different(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions in order, those that occur among them, and int64 [...] where each of the given ones stands."""
    if positions.numel():
        least, most = (int(end) for end in positions.aminmax())
        if most - least < positions.numel():  # as many at most: nothing need be sorted
            return torch.arange(least, most + 1), positions - least
    return positions.unique(return_inverse=True)
