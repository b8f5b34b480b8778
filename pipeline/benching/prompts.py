"""One prompt prefilled for many policies: once for all that want to see the same of it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.benching.stopwatch import timed
from pipeline.engines import prompt
from pipeline.engines.cache import KvEngine
from pipeline.engines.snapshot import Snapshot
from pipeline.kv.policy import Policy


class Prompts:
    """The prefilled states of one prompt, made when they are first asked for.

    Policies share one if it is stored in the same precision and the same is gathered of its attention; the queries
    kept are as many as the one with the widest window wants.
    """

    def __init__(self, engine: KvEngine, ids: Sequence[int], policies: Sequence[Policy]):
        self._engine, self._ids = engine, ids
        self._window = max((policy.window(len(ids)) for policy in policies if not policy.narrowing), default=0)
        self._made: dict[tuple, tuple[Snapshot, float]] = {}

    def prefilled(self, policy: Policy) -> tuple[Snapshot, float]:
        """Return the prompt as a policy's cuts want to see it, and the seconds that its prefill took."""
        key = (policy.precision, policy.running, policy.narrowing)
        if key not in self._made:
            self._made[key] = timed(self._prefill, policy)
        return self._made[key]

    def _prefill(self, policy: Policy) -> Snapshot:
        if policy.narrowing:
            return prompt.prefilled(self._engine, self._ids, policy)
        return prompt.whole(self._engine, self._ids, policy.precision, self._window, policy.running)
