"""What an engine offers to KV-cache policies: caches that tokens are appended to, read out and written back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from pipeline.kv.precision import F16, CacheShape, Precision
from pipeline.kv.rope import Rope

Rows = Callable[[int, Tensor], None]
"""Takes a layer and the attention weights of its newest queries, float32 [heads, w, n], oldest query first."""


class LayerKv(Protocol):
    """One layer's keys and values, as stored; entries stand oldest first in every KV head."""

    entries: int
    nbytes: int

    def keys(self) -> Tensor:
        """Return float32 [kv_heads, n, head_dim], after RoPE."""

    def gather(self, keep: Tensor) -> LayerKv:
        """Return the entries int64 [kv_heads, m] of each head."""

    def with_keys(self, keys: Tensor) -> LayerKv:
        """Return the same values under other keys, float32 [kv_heads, n, head_dim]."""

    def joined(self, newer: LayerKv) -> LayerKv:
        """Return these entries and those of ``newer`` behind them, all as they are stored."""


@dataclass(frozen=True)
class Watch:
    """What an append is to show besides logits."""

    queries: int = 0  # so many of its newest queries, of every layer
    rows: Rows | None = None  # takes every attention row, of every layer


class Cache(Protocol):
    """The KV cache of one sequence; layers may hold different numbers of entries."""

    block: int  # most tokens an append takes

    def append(
        self, ids: Sequence[int], position: int, wanted: np.ndarray, watch: Watch
    ) -> tuple[np.ndarray, list[Tensor]]:
        """Append tokens from ``position`` on; each sees all entries and the tokens before it.

        Return float32 logits [wanted, vocabulary], and of every layer the watched queries float32
        [heads, w, head_dim] after RoPE (none if none are watched).
        """

    def read(self) -> list[LayerKv]:
        """Return a copy of every layer."""

    def write(self, layers: Sequence[LayerKv], position: int) -> None:
        """Replace the contents; the next token will come at ``position``, whatever the layers' numbers of entries."""

    def drop(self, count: int) -> None:
        """Take back the newest ``count`` tokens, all of them appended since the last write, from every layer."""

    def kv_bytes(self) -> int:
        """Return the measured bytes of all keys and values."""

    def close(self) -> None:
        """Free the memory."""


@dataclass(frozen=True)
class Room:
    """How large a cache is to be and what it is for."""

    cells: tuple[int, ...]  # most entries of each layer
    precision: Precision = F16
    prefill: bool = False  # for long blocks; else for single tokens
    queries: bool = False  # queries will be watched
    rows: bool = False  # attention rows will be watched
    bounds: tuple[int, ...] = ()  # layers that may hold another number of entries than the one before


class Pieces(Protocol):
    """A model in pieces, consecutive ranges of layers that are run one after another on the tokens left."""

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """Return the first piece's input states, float32 [n, width]."""

    def run(
        self, piece: int, states: np.ndarray, positions: np.ndarray, queries: int
    ) -> tuple[np.ndarray, list[LayerKv], list[Tensor]]:
        """Run one piece on tokens at rising positions.

        Return its output states float32 [n, width] (of the last piece, the newest token's logits [1, vocabulary]),
        its layers, and every layer's newest queries [heads, w, head_dim], none if none are wanted.
        """

    def close(self) -> None:
        """Free the memory."""


class KvEngine(Protocol):
    """A loaded model that policies run on."""

    name: str
    shape: CacheShape
    rope: Rope

    def cache(self, room: Room) -> Cache:
        """Return an empty cache; raise UserError if this engine cannot hold it so."""

    def pieces(self, bounds: Sequence[int], precision: Precision, tokens: int) -> Pieces:
        """Return the model cut before the layers ``bounds``, for a prompt of ``tokens``."""
