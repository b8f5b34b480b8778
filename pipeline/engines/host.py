"""Host: every entry of a sequence in the machine's memory, bit for bit; a cut chooses anew among all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from pipeline.engines.cache import KvEngine, LayerKv
from pipeline.engines.snapshot import Snapshot, moved
from pipeline.kv.evidence import Evidence
from pipeline.kv.policy import Policy
from pipeline.kv.running import Memory


class HostLayer:
    """One layer's entries as they are stored, in the pieces in which they came: adding one moves no other."""

    def __init__(self) -> None:
        self._pieces: list[LayerKv] = []
        self._starts: list[int] = []
        self.entries = 0
        self.nbytes = 0

    def __deepcopy__(self, memo: dict) -> HostLayer:
        """Return a layer that grows apart from this one; the pieces, which never change, are shared."""
        layer = HostLayer()
        layer._pieces, layer._starts = list(self._pieces), list(self._starts)
        layer.entries, layer.nbytes = self.entries, self.nbytes
        return layer

    def add(self, newest: LayerKv) -> None:
        """Put entries behind those at hand."""
        self._pieces.append(newest)
        self._starts.append(self.entries)
        self.entries += newest.entries
        self.nbytes += newest.nbytes

    def keys(self) -> Tensor:
        """Return float32 [kv_heads, n, head_dim], after RoPE."""
        return torch.cat([piece.keys() for piece in self._pieces], dim=1)

    def gather(self, keep: Tensor) -> LayerKv:
        """Return the entries int64 [kv_heads, m], rising and the same in every head."""
        piece = torch.searchsorted(torch.tensor(self._starts), keep[0], right=True) - 1
        which, counts = piece.unique_consecutive(return_counts=True)
        parts = []
        for index, here in zip(which.tolist(), keep.split(counts.tolist(), dim=1), strict=True):
            whole = here.shape[1] == self._pieces[index].entries
            parts.append(self._pieces[index] if whole else self._pieces[index].gather(here - self._starts[index]))
        return reduce(lambda older, newer: older.joined(newer), parts)


class Host:
    """The master copy of a sequence's entries, each at its place in the text, and what its blocks are found by.

    Eviction and retrieval are one: at each cut the entries that came since the last one are copied here as they are
    stored, and what the cache is to hold is taken from here. A block of the text is represented once, when it has
    left the window as a whole; what it draws after it has come back changes nothing.
    """

    def __init__(self, engine: KvEngine, policy: Policy):
        self._policy, self._rope, self._heads = policy, engine.rope, engine.shape.kv_heads
        self._layers = [HostLayer() for _ in range(engine.shape.layers)]
        self._signal = policy.decode.scorer and policy.decode.scorer.signal
        self._sinks = policy.decode.segments.sinks
        self._blocks: list[Tensor] = []  # of each layer float32 [kv_heads, blocks, head_dim]
        self._memories: list[Memory] = [policy.running() for _ in self._layers] if policy.running else []
        self._settled = self._sinks  # the oldest living entries, whose attention is gathered no more

    @property
    def layers(self) -> Sequence[HostLayer]:
        """Every entry that there was at the last cut; the entry of token i is the i-th."""
        return self._layers

    @property
    def gathers(self) -> bool:
        """Whether it is to be shown every attention row."""
        return bool(self._memories)

    def observe(self, layer: int, rows: Tensor) -> None:
        """Take in attention rows, float32 [heads, w, n], for the entries that no block on the host holds yet."""
        self._memories[layer].observe(rows[..., self._settled :])

    def cut(self, living: Snapshot) -> Snapshot:
        """Take in the entries that came since the last cut; return the snapshot with those of all that stay now."""
        came = living.seen - self._layers[0].entries
        policy, targets = self._policy, self._policy.decode.targets(self._policy.budget, living.lives)
        for layer, held in zip(living.layers, self._layers, strict=True):
            held.add(layer.gather(torch.arange(layer.entries - came, layer.entries).expand(self._heads, -1)))
        if self._signal:
            self._represent(living.seen, targets[0])
        keep = [index.expand(self._heads, -1) for index in policy.decode.keep(self._evidence(living), targets)]
        self._settled = targets[0] - (living.seen - self._represented)
        places, upcoming = policy.positions.place(keep, living.upcoming)
        layers = [held.gather(index) for held, index in zip(self._layers, keep, strict=True)]
        if policy.positions.shifts:
            layers = moved(layers, [to - was for to, was in zip(places, keep, strict=True)], self._rope)
        return replace(living, layers=layers, origins=keep, positions=places, upcoming=upcoming)

    def kv_bytes(self) -> int:
        """Return the measured bytes of all keys and values here."""
        return sum(held.nbytes for held in self._layers)

    def state_bytes(self) -> int:
        """Return the bytes of what blocks are found by, and of what attention has brought the entries of the window."""
        return sum(blocks.nbytes for blocks in self._blocks) + sum(memory.size_bytes() for memory in self._memories)

    @property
    def _represented(self) -> int:
        """How many of the oldest entries sinks and represented blocks are."""
        return self._sinks + (self._blocks[0].shape[1] * self._signal.block if self._blocks else 0)

    def _represent(self, seen: int, target: int) -> None:
        """Represent the blocks that have left the window since the last cut."""
        size, first = self._signal.block, self._represented
        count = (seen - self._policy.decode.segments.recent_of(target) - first) // size
        if count <= 0:
            return
        places = torch.arange(first, first + count * size).expand(self._heads, -1)
        made = []
        for index, held in enumerate(self._layers):
            keys = self._rope.rotate(held.gather(places).keys(), -places)
            sums = self._memories[index].value()[:, : count * size] if self._memories else None
            made.append(
                self._signal.represent(
                    keys.unflatten(1, (count, size)), None if sums is None else sums.unflatten(1, (count, size))
                )
            )
        self._blocks = [torch.cat(pair, 1) for pair in zip(self._blocks, made, strict=True)] if self._blocks else made
        for index, memory in enumerate(self._memories):
            waiting = torch.arange(count * size, memory.value().shape[-1])
            self._memories[index] = memory.gathered(waiting.expand(self._heads, -1))

    def _evidence(self, living: Snapshot) -> list[Evidence]:
        """Return what the signal may look at. The heads of a layer keep one set: entries are told of one head."""
        every = torch.arange(living.seen).unsqueeze(0)
        (places,), _ = self._policy.positions.place([every], living.upcoming)
        return [
            Evidence(
                layer=index,
                seen=living.seen,
                origins=every,
                positions=places,
                keys=held.keys,
                rope=self._rope,
                queries=living.queries[index] if living.queries else None,
                blocks=self._blocks[index] if self._blocks else None,
            )
            for index, held in enumerate(self._layers)
        ]
