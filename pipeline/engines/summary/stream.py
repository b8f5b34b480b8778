"""SummaryStream: sinks, a summary of what has gone, and the newest or chosen entries, within one budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.engines.cache import Cache, KvEngine
from pipeline.engines.rereading import TextStream
from pipeline.engines.snapshot import Snapshot
from pipeline.engines.summary.account import Account
from pipeline.engines.summary.ledger import Ledger, Passage
from pipeline.engines.summary.writer import Extractive, Writer, Written
from pipeline.kv.policy import Policy


class SummaryStream(TextStream):
    """A stream of which every token is at one place: among the sinks, in the ledger, or alive behind the summary.

    The summary is whole at any time: a new one takes the old one's place between two tokens. A writer that fails is
    asked again after the next cut, the old summary staying; if it fails again, sentences of the text do. While what
    comes is ``tentative``, what is evicted waits: a summary of it would be written twice.
    """

    def __init__(self, engine: KvEngine, cache: Cache, policy: Policy, writer: Writer | None, fallback: Extractive):
        """Take a policy with a summary; without a ``writer`` its room stays empty."""
        super().__init__(engine, cache, policy)
        self._whole, self._writer, self._fallback = policy, writer, fallback
        self._failed = False  # the last attempt
        self.ledger = Ledger()
        self._account = Account()
        self.summary: tuple[int, ...] = ()  # its tokens

    @property
    def account(self) -> Account:
        """What the summaries have cost so far."""
        return self._account

    def state_bytes(self) -> int:
        """Return the bytes of what is kept beside keys and values: token ids and the ledger."""
        return super().state_bytes() + self.ledger.size_bytes()

    def _beside(self) -> Any:
        """Return the tokens of all entries and of the summary, the ledger, the account, and whether a writer failed."""
        return super()._beside(), self.summary, self.ledger, self._account, self._failed

    def _take_beside(self, beside: Any) -> None:
        """Take back what :meth:`_beside` gave."""
        ids, self.summary, self.ledger, self._account, self._failed = beside
        super()._take_beside(ids)
        self._policy = self._whole if self.ledger.empty else self._whole.beside(len(self.summary))

    def _cut(self) -> None:
        self._policy = self._whole.beside(len(self.summary))  # from the first cut on its room is set aside
        super()._cut()

    def _evicted(self, before: Snapshot, ids: Sequence[int], gone: Tensor) -> None:
        if self._writer is None:
            self.ledger.cover(before.origins[0][0][gone].tolist())
            return
        self.ledger.add(_passage(before, ids, gone.nonzero()[:, 0]))
        if len(self.ledger.waiting) >= self._whole.summary.due(self._account.made) and not self.tentative:
            stop = self._prefix + len(self.summary)
            old = _passage(before, ids, torch.arange(self._prefix, stop))
            self._renew(replace(old, generation=self.ledger.generation))
        self._account.waiting, self._account.entries = len(self.ledger.waiting), len(self.summary)

    def _renew(self, old: Passage) -> None:
        """Put a new summary in the old one's place, or keep it until the next cut if the writer fails."""
        self._account.retries += self._failed
        found = self._asked(self._writer, old)
        if not self._fits(found):
            self._account.failures += 1
            if not self._failed:
                self._failed = True
                return
            found = self._asked(self._fallback, old)
            self._account.fallbacks += 1
        self._failed = False
        self.ledger.settle()
        if found.ids:
            self.ledger.generation = found.generation
            started = time.perf_counter()
            self._insert(found.ids)
            self._account.inserting += time.perf_counter() - started
            self._account.made += 1
            self._account.written += len(found.ids)

    def _fits(self, found: Written) -> bool:
        return 0 < len(found.ids) <= self._whole.summary.tokens

    def _asked(self, writer: Writer, old: Passage) -> Written:
        started = time.perf_counter()
        found = writer.write(old, self.ledger.waiting, self._whole.summary.tokens, self._failed)
        self._account.add(found, time.perf_counter() - started)
        self.aside.tokens += found.computed
        self.aside.attended += found.attended
        self.aside.predictions += found.predicted
        return found

    def _insert(self, summary: tuple[int, ...]) -> None:
        """Put a summary behind the sinks; negative origins, rising, say that its entries stem from no token."""
        first, behind = self._prefix, self._prefix + len(self.summary)
        kept, rest = self._origins[0][0], self._ids[behind:]
        origins = torch.cat([kept[:first], torch.arange(-len(summary), 0), kept[behind:]])
        newest = None if not self._whole.summary.shifts else self.snapshot()
        self._policy = self._whole.beside(len(summary))
        if newest is None:
            self._reread([*summary, *rest], origins)
        else:
            self._reread(summary, origins[: first + len(summary)])
            self._shift(newest.part(behind, newest.lives[0]).shifted(len(summary) - len(self.summary), self._rope))
            self._ids += rest
        self.summary = summary

    def _shift(self, newest: Snapshot) -> None:
        """Put entries behind those at hand, as they are stored."""
        head = self.snapshot()
        self._write(
            replace(
                newest,
                layers=[old.joined(new) for old, new in zip(head.layers, newest.layers, strict=True)],
                origins=[torch.cat(pair, dim=1) for pair in zip(head.origins, newest.origins, strict=True)],
                positions=[torch.cat(pair, dim=1) for pair in zip(head.positions, newest.positions, strict=True)],
            )
        )


def _passage(state: Snapshot, ids: Sequence[int], index: Tensor) -> Passage:
    """Return some entries' tokens; short keys weigh most, since they draw attention (arXiv 2406.11430)."""
    every = index.expand(len(state.origins[0]), -1)
    norms = torch.stack([layer.gather(every).keys().norm(dim=-1).mean(0) for layer in state.layers]).mean(0)
    places = index.tolist()
    return Passage(
        ids=tuple(ids[place] for place in places),
        origins=tuple(state.origins[0][0][index].tolist()),
        weights=tuple((-norms).tolist()),
    )
