"""Snapshot: a sequence's cache outside any engine, with what is known of its entries; and how a cut changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.cache import LayerKv
from pipeline.kv.cut import Cut
from pipeline.kv.evidence import Evidence, Queries
from pipeline.kv.positions import Positions
from pipeline.kv.rope import Rope
from pipeline.kv.running import Memory


@dataclass(frozen=True)
class Snapshot:
    """All layers of one sequence. Lists have one item a layer; tensors of entries are int64 [kv_heads, n]."""

    layers: Sequence[LayerKv]
    origins: Sequence[Tensor]  # the tokens that entries stem from
    positions: Sequence[Tensor]  # where RoPE has placed them
    queries: Sequence[Queries]  # the newest ones; empty if no scorer wants them
    memories: Sequence[Memory]  # what a running scorer has gathered; empty without one
    seen: int  # tokens fed so far
    upcoming: int  # the next token's position
    logits: np.ndarray  # float32 [vocabulary], after the newest token

    @property
    def lives(self) -> list[int]:
        """Entries of each layer."""
        return [layer.entries for layer in self.layers]

    def part(self, start: int, stop: int) -> Snapshot:
        """Return the entries [start, stop) of layers of one size, and all else as it is."""
        index = torch.arange(start, stop).expand(len(self.origins[0]), -1)
        return replace(
            self,
            layers=[layer.gather(index) for layer in self.layers],
            origins=[origins[:, start:stop] for origins in self.origins],
            positions=[positions[:, start:stop] for positions in self.positions],
        )

    def shifted(self, by: int, rope: Rope) -> Snapshot:
        """Return the snapshot with all positions, the next token's too, greater by ``by``."""
        return replace(
            self,
            layers=moved(self.layers, [torch.full_like(places, by) for places in self.positions], rope),
            positions=[places + by for places in self.positions],
            queries=[_turned(queries, by, rope) for queries in self.queries],
            upcoming=self.upcoming + by,
        )


@dataclass(frozen=True)
class Checkpoint:
    """A sequence that a stream may come back to, apart from what it is fed later."""

    snapshot: Snapshot
    beside: Any = None  # what a kind of stream keeps besides


def evidence(snapshot: Snapshot, rope: Rope) -> list[Evidence]:
    """Return what a scorer may look at, layer by layer."""
    return [
        Evidence(
            layer=index,
            seen=snapshot.seen,
            origins=snapshot.origins[index],
            positions=snapshot.positions[index],
            keys=layer.keys,
            rope=rope,
            queries=snapshot.queries[index] if snapshot.queries else None,
            sums=snapshot.memories[index].value() if snapshot.memories else None,
        )
        for index, layer in enumerate(snapshot.layers)
    ]


def evict(snapshot: Snapshot, cut: Cut, budget: int, positions: Positions, rope: Rope) -> Snapshot:
    """Return the snapshot after a cut, the survivors placed anew; the one given stays as it is."""
    targets = cut.targets(budget, snapshot.lives)
    if targets == snapshot.lives:
        return snapshot
    keep = cut.keep(evidence(snapshot, rope), targets)
    old = [places.gather(1, index) for places, index in zip(snapshot.positions, keep, strict=True)]
    new, upcoming = positions.place(old, snapshot.upcoming)
    layers = [
        layer if target == layer.entries else layer.gather(index)
        for layer, index, target in zip(snapshot.layers, keep, targets, strict=True)
    ]
    if positions.shifts:
        layers = moved(layers, [to - was for to, was in zip(new, old, strict=True)], rope)
    return replace(
        snapshot,
        layers=layers,
        origins=[origins.gather(1, index) for origins, index in zip(snapshot.origins, keep, strict=True)],
        positions=new,
        queries=[_turned(queries, upcoming - snapshot.upcoming, rope) for queries in snapshot.queries],
        memories=[memory.gathered(index) for memory, index in zip(snapshot.memories, keep, strict=False)],
        upcoming=upcoming,
    )


def moved(layers: Sequence[LayerKv], by: Sequence[Tensor], rope: Rope) -> list[LayerKv]:
    """Return the layers with their keys moved by int64 [kv_heads, n]; most often by the same in all of them."""
    made, before, angles = [], None, None
    for layer, delta in zip(layers, by, strict=True):
        if before is None or not torch.equal(before, delta):
            before, angles = delta, rope.angles(delta) if delta.any() else None
        made.append(layer.with_keys(rope.turn(layer.keys(), angles)) if angles else layer)
    return made


def _turned(queries: Queries, by: int, rope: Rope) -> Queries:
    """Return queries that move along with the newest entries."""
    if not by:
        return queries
    positions = queries.positions + by
    return replace(queries, vectors=rope.rotate(queries.vectors, positions * 0 + by), positions=positions)
