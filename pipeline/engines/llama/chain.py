"""One model run as a chain of parts, consecutive layers each with a KV cache of its own size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engines.llama import library
from pipeline.engines.llama.context import DEFAULT, UBATCH, Context
from pipeline.engines.llama.observer import Observer, Taker
from pipeline.engines.llama.parts import Embedding, Source, layer_ranges
from pipeline.kv.precision import Precision

OUTPUT = "l_out"


@dataclass(frozen=True)
class Parts:
    """The loaded models of a chain, which several chains may share."""

    models: tuple[Any, ...]
    layers: tuple[range, ...]  # of the whole model, one range a part
    embedding: Embedding | None  # None for a whole model, which takes ids

    @classmethod
    def cut(cls, source: Source, bounds: Sequence[int], folder: Path, gapped: bool = False) -> Parts:
        """Cut a GGUF file as :meth:`pipeline.engines.llama.parts.Source.split` does, and load its parts.

        The files in ``folder`` must live as long as the parts.
        """
        paths = source.split(bounds, folder, gapped)
        with ExitStack() as loading:
            models = []
            for path in paths:
                models.append(library.load_model(path))
                loading.callback(library.free_model, models[-1])
            loading.pop_all()
        return cls(tuple(models), tuple(layer_ranges(source.layers, bounds)), source.embedding())

    @classmethod
    def whole(cls, model: Any) -> Parts:
        """Return a loaded model as the only part; closing the parts frees it."""
        return cls((model,), (range(library.cache_shape(model).layers),), None)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the models; every chain of them must be closed before, and no other may follow."""
        for model in self.models:
            library.free_model(model)


class Chain:
    """One sequence of a model in parts: like a :class:`Context`, with a cache a part. A whole model has one context."""

    def __init__(
        self,
        parts: Parts,
        cells: Sequence[int],
        *,
        threads: int,
        n_batch: int = UBATCH,
        precision: Precision = DEFAULT,
        flash_attention: bool = False,
        observed: bool = False,
    ):
        """Make room for as many cells in each part as ``cells`` says; tokens pass in blocks of at most ``n_batch``.

        ``observed`` lets :meth:`listen` work, which costs a little time at every token even while nothing listens.
        Raises ValueError unless there is one number of cells a part.
        """
        if len(cells) != len(parts.models):
            raise ValueError(f"{len(cells)} numbers of cells for {len(parts.models)} parts: expected one each")
        self.layers = parts.layers
        self.contexts: list[Context] = []
        self._embedding = parts.embedding
        passing = len(parts.models) - 1  # these parts hand on hidden states, which their observers take
        self._observers = [Observer() if observed or index < passing else None for index in range(passing + 1)]
        self._observed = observed
        self._takers: Mapping[str, Taker] = {}
        with ExitStack() as opening:
            for model, n_ctx, observer in zip(parts.models, cells, self._observers, strict=True):
                context = Context(
                    model,
                    n_ctx=n_ctx,
                    threads=threads,
                    n_batch=n_batch,
                    precision=precision,
                    flash_attention=flash_attention,
                    observer=observer,
                )
                self.contexts.append(opening.enter_context(context))
            self._open = opening.pop_all()
        self.n_batch = min(context.n_batch for context in self.contexts)
        self.vocabulary = self.contexts[-1].vocabulary
        self.cells = tuple(context.cells for context in self.contexts)

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the caches and the buffers, not the models."""
        self._open.close()

    @contextmanager
    def listen(self, takers: Mapping[str, Taker]) -> Iterator[None]:
        """Hand signals to takers as :meth:`Observer.listen` does, with the layers of the whole model.

        Raises RuntimeError if the chain is not ``observed``, or if something listens already.
        """
        if not self._observed:
            raise RuntimeError("a chain is listened to only if it was made with observed=True")
        if self._takers:
            raise RuntimeError("a chain is listened to for one purpose at a time")
        self._takers = takers
        try:
            yield
        finally:
            self._takers = {}

    def decode(self, ids: Sequence[int], positions: Sequence[int], wanted: Sequence[bool] | None = None) -> np.ndarray:
        """Append tokens and return float32 logits [wanted tokens, vocabulary], of the last token alone by default.

        They may be a view that is valid until the next call. Raises ContextFull if a part has no room; the parts
        before it have taken the tokens then.
        """
        return self._scored(ids, positions, wanted, range(len(self.layers)))

    def embed(self, ids: Sequence[int]) -> Sequence[int] | np.ndarray:
        """Return what the first part takes: float32 [n, width], or the ids themselves for a whole model."""
        return ids if self._embedding is None else self._embedding(ids)

    def prefill_part(self, index: int, states: Sequence[int] | np.ndarray, positions: Sequence[int]) -> np.ndarray:
        """Append tokens to one part but the last: what it takes in, hidden states float32 [n, width] out.

        Between parts the caller may leave tokens out; with parts made for gaps the rest keep their positions. Raises
        ValueError for the last part, which gives logits.
        """
        if index == len(self.layers) - 1:
            raise ValueError(f"part {index} is the last, which gives logits: call prefill_last")
        blocks = self._blocks(len(states))
        return _joined([self._states(index, states[block], positions[block]) for block in blocks])

    def prefill_last(
        self, states: np.ndarray, positions: Sequence[int], wanted: Sequence[bool] | None = None
    ) -> np.ndarray:
        """Append tokens to the last part, hidden states float32 [n, width] in; return logits like :meth:`decode`."""
        return self._scored(states, positions, wanted, range(len(self.layers) - 1, len(self.layers)))

    def remove(self, start: int, stop: int) -> None:
        """Drop the entries at positions [start, stop) in every part."""
        for context in self.contexts:
            context.remove(start, stop)

    def kv_bytes(self, entries: Sequence[int]) -> int:
        """Return the measured bytes of keys and values, with as many entries in each part as ``entries`` says."""
        parts = zip(self.contexts, self.layers, entries, strict=True)
        return sum(context.kv_bytes(len(layers), count) for context, layers, count in parts)

    def _blocks(self, count: int) -> list[slice]:
        return [slice(start, start + self.n_batch) for start in range(0, count, self.n_batch)]

    def _scored(
        self,
        entering: Sequence[int] | np.ndarray,
        positions: Sequence[int],
        wanted: Sequence[bool] | None,
        parts: range,
    ) -> np.ndarray:
        """Return the logits of what enters the first of some parts, the last part among them, block by block."""
        count = len(entering)
        outputs = np.arange(count) == count - 1 if wanted is None else np.asarray(wanted, bool)
        blocks = self._blocks(count)
        if len(blocks) == 1:
            return self._logits(entering, positions, outputs, parts)
        return np.concatenate([self._logits(entering[b], positions[b], outputs[b], parts).copy() for b in blocks])

    def _logits(
        self, entering: Sequence[int] | np.ndarray, positions: Sequence[int], outputs: np.ndarray, parts: range
    ) -> np.ndarray:
        states = self.embed(entering) if np.ndim(entering) == 1 else entering
        for index in parts[:-1]:
            states = self._states(index, states, positions)
        with self._listening(parts[-1], self._takers):
            return self.contexts[parts[-1]].decode(states, positions, wanted=outputs)

    def _states(self, index: int, states: Sequence[int] | np.ndarray, positions: Sequence[int]) -> np.ndarray:
        """Return the hidden states after a block has passed one part."""
        final = self.layers[index][-1]
        rows = []

        def take(layer: int, output: np.ndarray) -> None:
            if layer == final:
                rows.append(output.copy())
            if OUTPUT in self._takers:
                self._takers[OUTPUT](layer, output)

        with self._listening(index, {**self._takers, OUTPUT: take}):
            self.contexts[index].decode(states, positions, wanted=np.ones(len(states), bool))
        return _joined(rows)

    @contextmanager
    def _listening(self, index: int, takers: Mapping[str, Taker]) -> Iterator[None]:
        """Listen to a part with takers of the whole model's layers; without any, leave its observer idle."""
        if not takers:
            yield
            return
        first = self.layers[index].start
        local = {signal: _moved(taker, first) for signal, taker in takers.items()}
        with self._observers[index].listen(local):
            yield


def _moved(taker: Taker, first: int) -> Taker:
    return lambda layer, array: taker(first + layer, array)


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
