"""Trials of speed: what `make speed` times, each against full KV in the same process and in turns with it."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from pipeline.benching.stopwatch import timed
from pipeline.engines import opening
from pipeline.engines.llama import codec
from pipeline.engines.llama.kv import Flash, LlamaKvEngine, LlamaLayer
from pipeline.engines.llama.state import LayerState
from pipeline.engines.prompt import whole
from pipeline.engines.snapshot import Snapshot
from pipeline.engines.stream import Stream, room
from pipeline.kv import recipe
from pipeline.kv.policy import Policy
from pipeline.kv.precision import F16, Precision
from pipeline.kv.running import Running
from pipeline.timing.clock import TimedCache, TimedEngine
from pipeline.timing.settings import Settings

RESIDENT = Path("/proc/self/statm")


@dataclass(frozen=True)
class Case:
    """A policy by name, and whether it decodes with flash attention."""

    name: str
    policy: Policy
    flash: bool = False

    @classmethod
    def of(cls, name: str, budget: int, slack: int, layers: int, flash: bool = False) -> Case:
        """Return a recipe's policy at a budget; raise ConfigError if they do not fit."""
        return cls(name, recipe.read(name).policy(budget, slack, layers), flash)

    @property
    def unscored(self) -> Case:
        """Return the case that cuts as often and as much, each layer down to its sinks and newest entries."""
        segments = replace(self.policy.decode.segments, recent=0)
        cut = replace(self.policy.decode, segments=segments, scorer=None)
        return replace(self, name=f"{self.name} without scores", policy=replace(self.policy, decode=cut))


@dataclass(frozen=True)
class Engines:
    """One model under two settings: flash attention throughout, and nowhere."""

    on: LlamaKvEngine
    off: LlamaKvEngine

    def of(self, flash: bool) -> LlamaKvEngine:
        """Return the one with flash attention, or the one without."""
        return self.on if flash else self.off


@contextmanager
def loaded(path: Path, threads: int) -> Iterator[Engines]:
    """Yield the engines of a GGUF file, and free them in the end."""
    with LlamaKvEngine(path, threads, Flash(prefill=True, decode=True)) as on:
        yield Engines(on, on.with_flash(Flash(prefill=False, decode=False)))


@dataclass(frozen=True)
class Open:
    """A policy's stream, its cache, and the seconds that the cache has spent in each of its methods."""

    stream: Stream
    cache: TimedCache
    clock: Counter[str]


@contextmanager
def opened(engines: Engines, case: Case, prompt: int, tokens: int) -> Iterator[Open]:
    """Yield an empty stream with room for a prompt and ``tokens`` more."""
    engine, clock = engines.of(case.flash), Counter()
    cache = TimedEngine(engine, clock).cache(room(engine, case.policy, prompt, prompt + tokens))
    try:
        yield Open(opening.opened(engine, cache, case.policy), cache, clock)
    finally:
        cache.close()


@dataclass(frozen=True)
class Prefill:
    """A prompt in full KV; times in seconds."""

    snapshot: Snapshot
    seconds: float  # of the computation alone
    read: float  # of copying keys and values out


def prefill(engine: LlamaKvEngine, ids: Sequence[int], queries: int = 0, running: Running | None = None) -> Prefill:
    """Prefill a prompt as a whole, as :func:`pipeline.engines.prompt.whole` does."""
    clock: Counter[str] = Counter()
    snapshot = whole(TimedEngine(engine, clock), ids, F16, queries, running)
    return Prefill(snapshot, clock["append"], clock["read"])


def decode(streams: Mapping[str, Stream], ids: Sequence[int], settings: Settings) -> dict[str, np.ndarray]:
    """Feed every stream the same tokens one by one; return seconds [blocks, tokens].

    Streams take turns after each block, so that a slow moment hits them alike.
    """
    for stream, token in product(streams.values(), ids[: settings.warmup]):
        stream.feed([token])
    found: dict[str, list[list[float]]] = {name: [] for name in streams}
    for first in range(settings.warmup, settings.decoded, settings.tokens):
        block = ids[first : first + settings.tokens]
        for name, stream in streams.items():
            found[name].append([timed(stream.feed, [token])[1] for token in block])
    return {name: np.array(times) for name, times in found.items()}


@dataclass(frozen=True)
class Take:
    """The cut at a prompt's end and the move into the cache for decoding; median seconds."""

    seconds: float
    write: float  # of them, in the cache


def take(one: Open, prompt: Snapshot, times: int) -> Take:
    """Let a stream take a prompt several times; the first one warms up."""
    seconds, writes = [], []
    for _ in range(times + 1):
        one.clock.clear()
        seconds.append(timed(one.stream.take, prompt)[1])
        writes.append(one.clock["write"])
    return Take(float(np.median(seconds[1:])), float(np.median(writes[1:])))


def stored_as(prompt: Snapshot, precision: Precision) -> Snapshot:
    """Return a prompt with keys and values in other types, so that caches of several precisions share a prefill."""
    kinds = {(layer.stored.k_kind, layer.stored.v_kind) for layer in prompt.layers}
    if kinds == {(precision.k, precision.v)}:
        return prompt
    return replace(prompt, layers=[LlamaLayer(_encoded(layer.stored, precision)) for layer in prompt.layers])


def _encoded(layer: LayerState, precision: Precision) -> LayerState:
    keys, values = layer.keys_f32().swapaxes(0, 1), layer.values_f32().swapaxes(0, 1)
    return LayerState(
        precision.k,
        precision.v,
        codec.encode_heads(precision.k, keys, "k"),
        codec.encode_heads(precision.v, values, "v"),
    )


def resident_bytes() -> int:
    """Return the bytes of this process in memory, once freed blocks are handed back to the system."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    return int(RESIDENT.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
