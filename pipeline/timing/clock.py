"""Clocks around a cache: what a prefill, a cut and a token spend in llama.cpp, in reading and in writing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.benching.stopwatch import timed
from pipeline.engines.cache import Cache, KvEngine, LayerKv, Pieces, Room, Watch
from pipeline.kv.precision import CacheShape, Precision
from pipeline.kv.rope import Rope


class TimedCache:
    """A cache that adds up the seconds of its methods."""

    def __init__(self, cache: Cache, seconds: Counter[str]):
        self._cache, self.seconds, self.block = cache, seconds, cache.block

    def append(
        self, ids: Sequence[int], position: int, wanted: np.ndarray, watch: Watch
    ) -> tuple[np.ndarray, list[Any]]:
        """Append tokens."""
        return self._timed("append", self._cache.append, ids, position, wanted, watch)

    def read(self) -> list[LayerKv]:
        """Return a copy of every layer."""
        return self._timed("read", self._cache.read)

    def write(self, layers: Sequence[LayerKv], position: int) -> None:
        """Replace the contents."""
        self._timed("write", self._cache.write, layers, position)

    def kv_bytes(self) -> int:
        """Return the measured bytes of all keys and values."""
        return self._cache.kv_bytes()

    def close(self) -> None:
        """Free the memory."""
        self._cache.close()

    def _timed(self, name: str, method: Callable[..., Any], *arguments: Any) -> Any:
        found, seconds = timed(method, *arguments)
        self.seconds[name] += seconds
        return found


@dataclass(frozen=True)
class TimedEngine:
    """An engine whose caches share one clock."""

    engine: KvEngine
    seconds: Counter[str]

    @property
    def name(self) -> str:
        """The engine's name."""
        return self.engine.name

    @property
    def shape(self) -> CacheShape:
        """What one entry consists of."""
        return self.engine.shape

    @property
    def rope(self) -> Rope:
        """The model's rotation."""
        return self.engine.rope

    def cache(self, room: Room) -> TimedCache:
        """Return an empty cache."""
        return TimedCache(self.engine.cache(room), self.seconds)

    def pieces(self, bounds: Sequence[int], precision: Precision, tokens: int) -> Pieces:
        """Return the model in pieces, without a clock."""
        return self.engine.pieces(bounds, precision, tokens)
