"""Segments: the entries that are exempt from scoring, the first ones and the newest ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segments:
    """``sinks`` first entries and ``recent`` newest ones stay; a float is a share of the entries that stay."""

    sinks: int = 0
    recent: int | float = 0

    def recent_of(self, target: int) -> int:
        """Return how many of the newest entries are exempt where ``target`` entries stay."""
        if isinstance(self.recent, float):
            return min(target - self.sinks, int(self.recent * target))
        return self.recent

    def least(self, scored: bool) -> int:
        """Return the least size of a layer: the segments, and one more entry if others are ``scored``."""
        recent = 0 if isinstance(self.recent, float) else self.recent
        return self.sinks + recent + (1 if scored or not recent else 0)
