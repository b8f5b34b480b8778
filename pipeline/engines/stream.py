"""Stream: one sequence fed under a KV-cache policy, the same on every engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.cache import Cache, KvEngine, Room, Rows, Watch
from pipeline.engines.host import Host
from pipeline.engines.snapshot import Checkpoint, Snapshot, evict
from pipeline.kv.evidence import Queries
from pipeline.kv.policy import Policy
from pipeline.kv.running import Memory
from pipeline.kv.signals import window

if TYPE_CHECKING:
    from pipeline.engines.summary.account import Account


@dataclass(frozen=True)
class Mark:
    """Where a stream stood: after ``seen`` tokens, and what it had gathered of them, which may be nothing."""

    seen: int
    logits: np.ndarray  # float32 [vocabulary], after the newest of them
    queries: Sequence[Queries] = ()
    memories: Sequence[Memory] = ()


@dataclass
class Aside:
    """What was computed besides the text's own tokens: entries read again, summaries."""

    tokens: int = 0
    attended: int = 0  # entries that they saw, all layers and tokens added up
    predictions: int = 0


class Stream:
    """A cache and the policy that keeps it within its budget.

    Eviction follows the attention that brought the cache over its limit, so a token sees what it replaces. Start
    with an empty cache, or :meth:`take` a prompt that was prefilled as a whole.
    """

    summary: tuple[int, ...] = ()  # tokens of the text that stands for what was evicted; none here

    def __init__(self, engine: KvEngine, cache: Cache, policy: Policy):
        self._cache, self._policy, self._rope = cache, policy, engine.rope
        none = torch.empty(engine.shape.kv_heads, 0, dtype=torch.long)
        self._origins: list[Tensor] = [none] * engine.shape.layers  # of the entries there were at the last cut
        self._positions: list[Tensor] = [none] * engine.shape.layers
        self._since = 0  # tokens that came after it
        self._queries: list[Queries] = []
        self.host = Host(engine, policy) if policy.evicted == "host" else None  # of all entries, if they live on
        gathers = policy.running and not self.host
        self._memories: list[Memory] = [policy.running() for _ in self._origins] if gathers else []
        self._seen = self._upcoming = 0
        self._logits = np.empty(0, np.float32)
        self.peaks = [0] * engine.shape.layers  # most entries of each layer that lived at once
        self.attended = 0  # entries that tokens saw, all layers and tokens added up
        self.aside = Aside()
        self.tentative = False  # whether what comes will be taken back, so that nothing costly is to be made of it

    @property
    def lives(self) -> list[int]:
        """Entries of each layer."""
        return [origins.shape[1] + self._since for origins in self._origins]

    @property
    def account(self) -> Account | None:
        """What summaries have cost; None where the policy makes none."""
        return None

    @property
    def seen(self) -> int:
        """Tokens fed so far."""
        return self._seen

    @property
    def room(self) -> int | None:
        """How many tokens may come until a cut is due, which the last of them brings; None if it never is."""
        return self._policy.room(self.lives)

    def feed(self, ids: Sequence[int], *, every: bool = False) -> np.ndarray:
        """Append tokens; return float32 logits [n, vocabulary] after ``every`` one of them, or after the last."""
        scores = []
        fed = 0
        while fed < len(ids):
            room = self.room
            most = self._cache.block if room is None else max(1, min(room, self._cache.block))
            block = ids[fed : fed + most]
            fed += len(block)
            newest = self._append(block, every)
            if every or fed == len(ids):
                scores.append(newest)
            if self.room == 0:
                self._cut()
        return np.concatenate(scores)

    def mark(self) -> Mark:
        """Return where the stream stands, to :meth:`rewind` to."""
        return Mark(self._seen, self._logits, self._queries, copy.deepcopy(self._memories))

    def rewind(self, mark: Mark) -> None:
        """Take back the tokens that came after ``mark``, as if they had never been fed.

        Raises RuntimeError if a cut lies between, which nothing undoes, or if the mark lacks what is gathered.
        """
        count = self._seen - mark.seen
        if not 0 <= count <= self._since:
            raise RuntimeError(f"{count} tokens to take back, but {self._since} have come since the last cut")
        if len(mark.memories) != len(self._memories):
            raise RuntimeError("a mark without running scores for a policy that has them: take one with mark()")
        if count:
            self._cache.drop(count)
        self._since -= count
        self._seen -= count
        self._upcoming -= count
        self._queries, self._logits = list(mark.queries), mark.logits
        self._memories = copy.deepcopy(list(mark.memories))  # a mark may be gone back to more than once

    def take(self, prompt: Snapshot) -> None:
        """Go on from a prompt prefilled as a whole, cut as the policy says; what was fed before is forgotten.

        Raises ValueError under a policy whose evicted entries live on: its prompt is fed, cut by cut.
        """
        policy = self._policy
        if self.host:
            raise ValueError("evicted entries go to the host as they are fed: feed the prompt, do not prefill it")
        if policy.prefill:
            prompt = evict(prompt, policy.prefill, policy.budget, policy.positions, self._rope)
        if policy.decode:
            prompt = evict(prompt, policy.decode, policy.budget, policy.positions, self._rope)
        self._write(_apart(prompt))
        wanted = self._window()
        self._queries = [queries.last(wanted) for queries in self._queries] if wanted else []

    def origins(self) -> list[Tensor]:
        """Return for each layer int64 [kv_heads, n], the tokens that the living entries stem from.

        Entries that stem from none, a summary's, bear negative numbers, so that whatever comes later sees them.
        """
        return [_extended(old, self._seen, self._since) for old in self._origins]

    def snapshot(self) -> Snapshot:
        """Return the sequence as it stands."""
        return Snapshot(
            layers=self._cache.read(),
            origins=self.origins(),
            positions=[_extended(old, self._upcoming, self._since) for old in self._positions],
            queries=self._queries,
            memories=self._memories,
            seen=self._seen,
            upcoming=self._upcoming,
            logits=self._logits,
        )

    def checkpoint(self) -> Checkpoint:
        """Return the sequence as it stands, apart from what is fed later."""
        return Checkpoint(_apart(self.snapshot()), copy.deepcopy(self._beside()))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, any number of times; what was fed since is forgotten."""
        self._write(_apart(checkpoint.snapshot))
        self._take_beside(copy.deepcopy(checkpoint.beside))

    def state_bytes(self) -> int:
        """Return the bytes of what is kept beside keys and values: running scores, newest queries, and block keys."""
        queries = sum(queries.vectors.nbytes for queries in self._queries)
        gathered = self.host.state_bytes() if self.host else sum(memory.size_bytes() for memory in self._memories)
        return queries + gathered

    def host_bytes(self) -> int:
        """Return the measured bytes of keys and values in host memory: of every entry up to the last cut, or none."""
        return self.host.kv_bytes() if self.host else 0

    def _beside(self) -> Any:
        """Return what this kind of stream keeps beside a snapshot."""
        return self.host

    def _take_beside(self, beside: Any) -> None:
        """Take back what :meth:`_beside` gave."""
        self.host = beside

    def _append(self, block: Sequence[int], every: bool) -> np.ndarray:
        wanted = np.full(len(block), every)
        wanted[-1] = True
        watch = Watch(self._watched(len(block)), self._rows())
        count = len(block)
        self.attended += count * sum(self.lives) + len(self._origins) * count * (count + 1) // 2
        scores, queries = self._cache.append(block, self._upcoming, wanted, watch)
        self._seen += count
        self._upcoming += count
        self._since += count
        if queries:
            self._remember(queries)
        self.peaks = [max(peak, live) for peak, live in zip(self.peaks, self.lives, strict=True)]
        self._logits = scores[-1]
        return scores

    def _rows(self) -> Rows | None:
        """Return who wants to see attention rows."""
        if self.host:
            return self.host.observe if self.host.gathers else None
        return self._observe if self._memories else None

    def _observe(self, layer: int, rows: Tensor) -> None:
        self._memories[layer].observe(rows)

    def _window(self) -> int:
        """Return how many of the newest queries the next cut may look at."""
        scorer = self._policy.decode and self._policy.decode.scorer
        return window(scorer.signal.queries, max(self.lives)) if scorer and scorer.signal.queries else 0

    def _watched(self, count: int) -> int:
        """Return how many queries of the coming block to look at: none while the next cut will not see them."""
        room = self.room
        wanted = self._window()
        return 0 if not wanted or (room is not None and room - count >= wanted) else min(wanted, count)

    def _remember(self, vectors: Sequence[Tensor]) -> None:
        """Put new queries behind those at hand, and forget the ones that no cut will look at."""
        count = vectors[0].shape[1]
        new = torch.arange(-count, 0)
        fresh = [Queries(layer, new + self._upcoming, new + self._seen) for layer in vectors]
        if self._queries and int(self._queries[0].origins[-1]) == self._seen - count - 1:
            fresh = [old.joined(queries) for old, queries in zip(self._queries, fresh, strict=True)]
        self._queries = [queries.last(max(count, self._window())) for queries in fresh]

    def _cut(self) -> None:
        policy = self._policy
        if self.host:
            self._write(self.host.cut(self.snapshot()))
        else:
            self._write(evict(self.snapshot(), policy.decode, policy.budget, policy.positions, self._rope))

    def _write(self, snapshot: Snapshot) -> None:
        self._cache.write(snapshot.layers, snapshot.upcoming)
        self._origins, self._positions = list(snapshot.origins), list(snapshot.positions)
        self._queries, self._memories = list(snapshot.queries), list(snapshot.memories)
        self._since, self._seen, self._upcoming = 0, snapshot.seen, snapshot.upcoming
        self._logits = snapshot.logits
        self.peaks = [max(peak, live) for peak, live in zip(self.peaks, self.lives, strict=True)]


def room(engine: KvEngine, policy: Policy, prompt: int, tokens: int) -> Room:
    """Return the cache that a policy needs for ``tokens`` tokens in all, the first ``prompt`` of them a prompt."""
    layers = engine.shape.layers
    return Room(
        cells=tuple(policy.most_entries(layers, prompt, tokens)),
        precision=policy.precision,
        queries=bool(policy.decode and policy.decode.scorer and policy.decode.scorer.signal.queries),
        rows=policy.running is not None,
        bounds=tuple(policy.bounds(layers, prompt, tokens)),
    )


def _apart(snapshot: Snapshot) -> Snapshot:
    """Return a snapshot that shares no running scores, which change in place."""
    return replace(snapshot, memories=copy.deepcopy(list(snapshot.memories)))


def _extended(old: Tensor, end: int, count: int) -> Tensor:
    """Return [kv_heads, n] with ``count`` rising numbers up to ``end`` behind."""
    return torch.cat([old, torch.arange(end - count, end).expand(len(old), -1)], dim=1)
