"""LlamaKvEngine: a GGUF model whose KV cache policies cut per layer and per KV head, through its state."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.cache import LayerKv, Room, Watch
from pipeline.engines.llama import library, observer, state
from pipeline.engines.llama.chain import Chain, Parts
from pipeline.engines.llama.parts import GAPPED, Source
from pipeline.engines.llama.state import LayerState
from pipeline.errors import UserError
from pipeline.kv.precision import CacheShape, Precision
from pipeline.kv.rope import Rope

ROPE_NORM = 0  # llama.cpp's number of a rotation whose pairs stand side by side


@dataclass(frozen=True)
class Flash:
    """Whether flash attention is on; caches handed over from prefill to decoding may differ in it.

    Quantised caches always have it, caches whose attention rows are watched never do.
    """

    prefill: bool = True
    decode: bool = False


PREFILL_ON = Flash()


class LlamaKvEngine:
    """A loaded GGUF file. Layers that hold unequal numbers of entries run as parts of the model, chained."""

    name = "llama.cpp"

    def __init__(self, path: Path, threads: int, flash: Flash = PREFILL_ON):
        """Load the file, and check once that our mirror of llama.cpp's structures fits the installed build."""
        self.threads, self.flash = threads, flash
        model = library.load_model(path)
        observer.selftest(model)
        self.shape: CacheShape = library.cache_shape(model)
        self.rope: Rope = rope_of(model)
        self.model = model
        self._gaps = library.header(model, "general.architecture") in GAPPED
        self._folder = tempfile.TemporaryDirectory(prefix="peakchat-parts-")
        self._source = cache(partial(Source, path))  # its header takes half a second to read, so it is read once
        self._parts = {((), False): Parts.whole(model)}

    def __enter__(self) -> LlamaKvEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and its parts."""
        for parts in self._parts.values():
            parts.close()
        self._parts = {}
        self._folder.cleanup()

    def with_flash(self, flash: Flash) -> LlamaKvEngine:
        """Return the same loaded model with other settings of flash attention; close the first one alone."""
        other = copy.copy(self)
        other.flash = flash
        return other

    def cache(self, room: Room) -> LlamaCache:
        """Return an empty cache; runs of layers with the same number of entries share a context."""
        if room.rows and room.precision.quantised:
            raise UserError(
                f"a cache in {room.precision.k}/{room.precision.v} needs flash attention, which shows no attention "
                "rows: take a policy that does not sum attention, or f16"
            )
        wanted = self.flash.prefill if room.prefill else self.flash.decode
        flash = room.precision.quantised or (wanted and not room.rows)
        parts = self._loaded(room.bounds, gapped=False)
        cells = [max(room.cells[layer] for layer in layers) for layers in parts.layers]
        return LlamaCache(
            self._chain(parts, cells, room.precision, flash, room.queries or room.rows), self.shape, flash
        )

    def pieces(self, bounds: Sequence[int], precision: Precision, tokens: int) -> LlamaPieces:
        """Return the model in pieces, each with room for ``tokens``."""
        parts = self._loaded(bounds, gapped=self._gaps)
        chain = self._chain(
            parts, [tokens] * len(parts.models), precision, self.flash.prefill or precision.quantised, True
        )
        return LlamaPieces(chain, self.shape, self._gaps)

    def _loaded(self, bounds: Sequence[int], gapped: bool) -> Parts:
        """Return the parts that begin at these layers; they are made once and kept."""
        key = (tuple(bounds), gapped)
        if key not in self._parts:
            folder = Path(self._folder.name) / str(len(self._parts))
            folder.mkdir()
            self._parts[key] = Parts.cut(self._source(), bounds, folder, gapped)
        return self._parts[key]

    def _chain(self, parts: Parts, cells: Sequence[int], precision: Precision, flash: bool, observed: bool) -> Chain:
        return Chain(parts, cells, threads=self.threads, precision=precision, flash_attention=flash, observed=observed)


def rope_of(model: Any) -> Rope:
    """Return how the model rotates keys and queries, from the GGUF header; raise UserError for a scaled rotation."""
    scaling = library.header(model, f"{library.header(model, 'general.architecture')}.rope.scaling.type")
    if scaling not in (None, "none"):
        raise UserError(f"rope.scaling.type {scaling}: a scaled rotation cannot be undone; take another model")
    length = library.cache_shape(model).key_length
    theta = library.header(model, f"{library.header(model, 'general.architecture')}.rope.freq_base")
    return Rope(
        theta=10000.0 if theta is None else float(theta),
        dims=library.number(model, "rope.dimension_count", length),
        interleaved=library.api().llama_model_rope_type(model) == ROPE_NORM,
    )


@dataclass(frozen=True)
class LlamaLayer:
    """A layer's keys and values as llama.cpp stores them, for the algebra."""

    stored: LayerState

    @property
    def entries(self) -> int:
        """Entries of every KV head."""
        return self.stored.entries

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.stored.keys.nbytes + self.stored.values.nbytes

    def keys(self) -> Tensor:
        """Return float32 [kv_heads, n, head_dim], after RoPE."""
        return torch.from_numpy(self.stored.keys_f32())

    def gather(self, keep: Tensor) -> LlamaLayer:
        """Return the entries int64 [kv_heads, m] of each head."""
        return LlamaLayer(self.stored.gather(keep.numpy()))

    def with_keys(self, keys: Tensor) -> LlamaLayer:
        """Return the same values under other keys."""
        return LlamaLayer(self.stored.with_keys(keys.numpy()))

    def joined(self, newer: LlamaLayer) -> LlamaLayer:
        """Return these entries and those of ``newer`` behind them."""
        return LlamaLayer(self.stored.joined(newer.stored))


class LlamaCache:
    """One sequence in a chain of contexts; its cells stand in the order of its entries."""

    def __init__(self, chain: Chain, shape: CacheShape, flash: bool):
        self._chain, self._shape, self._flash = chain, shape, flash
        self._lives = [0] * shape.layers
        self._held: list[LayerKv] = []  # what was read last, while it is still what the cache holds
        self._upcoming = 0
        self.block = chain.n_batch

    def append(
        self, ids: Sequence[int], position: int, wanted: np.ndarray, watch: Watch
    ) -> tuple[np.ndarray, list[Tensor]]:
        """Append tokens as :class:`pipeline.engines.cache.Cache` says."""
        self._lives = [live + len(ids) for live in self._lives]
        self._held, self._upcoming = [], position + len(ids)
        queries: list[Tensor] = []
        takers = {}
        if watch.queries:
            takers["Qcur"] = lambda layer, found: queries.append(newest(found, watch.queries))
        if watch.rows:  # beyond the entries lie cells that no token has, without weight
            takers["kq_soft_max"] = lambda layer, found: watch.rows(
                layer, torch.from_numpy(found[..., : self._lives[layer]])
            )
        with self._chain.listen(takers) if takers else nullcontext():
            logits = self._chain.decode(ids, np.arange(position, position + len(ids)), wanted)
        return logits.copy(), queries

    def read(self) -> list[LayerKv]:
        """Return a copy of every layer."""
        parts = range(len(self._chain.layers))
        self._held = [layer for part in parts for layer in layers_of(self._chain, part, self._shape)]
        return self._held

    def write(self, layers: Sequence[LayerKv], position: int) -> None:
        """Replace the contents. Entries are labelled up to ``position``, so that every one is seen from there on."""
        for context, part in zip(self._chain.contexts, self._chain.layers, strict=True):
            if position == self._upcoming and self._holds(layers, part):
                continue
            stored = [layers[layer].stored for layer in part]
            labels = np.arange(position - stored[0].entries, position, dtype=np.int32)
            context.restore(state.build(stored, labels, transposed=not self._flash))
        self._lives = [layer.entries for layer in layers]
        self._held, self._upcoming = [], position

    def _holds(self, layers: Sequence[LayerKv], part: range) -> bool:
        """Tell whether a part's layers are those that were read and that nothing has changed since."""
        return bool(self._held) and all(layers[layer] is self._held[layer] for layer in part)

    def drop(self, count: int) -> None:
        """Take back the newest ``count`` tokens: their positions are the highest in every part."""
        self._chain.remove(self._upcoming - count, self._upcoming)
        self._lives = [live - count for live in self._lives]
        self._held, self._upcoming = [], self._upcoming - count

    def kv_bytes(self) -> int:
        """Return the measured bytes of all keys and values."""
        if not any(self._lives):
            return 0  # the state of an empty cache lacks the headers that are taken off others
        return self._chain.kv_bytes([self._lives[part.start] for part in self._chain.layers])

    def close(self) -> None:
        """Free the memory."""
        self._chain.close()


class LlamaPieces:
    """A model in pieces for a prompt that is narrowed between them."""

    def __init__(self, chain: Chain, shape: CacheShape, gaps: bool):
        self._chain, self._shape, self._gaps = chain, shape, gaps

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """Return the first piece's input states, float32 [n, width]."""
        return self._chain.embed(ids)

    def run(
        self, piece: int, states: np.ndarray, positions: np.ndarray, queries: int
    ) -> tuple[np.ndarray, list[LayerKv], list[Tensor]]:
        """Run one piece as :class:`pipeline.engines.cache.Pieces` says."""
        if not self._gaps and (np.diff(positions) != 1).any():
            raise UserError("this model's architecture cannot skip positions; take a policy that narrows no states")
        seen: dict[int, Tensor] = {}

        def take(layer: int, found: np.ndarray) -> None:
            new = newest(found, queries)
            seen[layer] = torch.cat([seen[layer], new], dim=1)[:, -queries:] if layer in seen else new

        last = piece == len(self._chain.layers) - 1
        run = self._chain.prefill_last if last else lambda *given: self._chain.prefill_part(piece, *given)
        with self._chain.listen({"Qcur": take}) if queries else nullcontext():
            given = run(states, positions).copy()
        made = layers_of(self._chain, piece, self._shape)
        return given, made, [seen[layer] for layer in sorted(seen)]

    def close(self) -> None:
        """Free the memory."""
        self._chain.close()


def newest(found: np.ndarray, count: int) -> Tensor:
    """Return a copy of the last ``count`` of queries [w, heads, head_dim] as [heads, count, head_dim]."""
    return torch.from_numpy(found[-count:].swapaxes(0, 1).copy())


def layers_of(chain: Chain, part: int, shape: CacheShape) -> list[LlamaLayer]:
    """Return a copy of one part's layers."""
    context = chain.contexts[part]
    own = replace(shape, layers=len(chain.layers[part]))
    return [LlamaLayer(layer) for layer in state.parse(context.state(), own, n_pos=context.n_pos)]
