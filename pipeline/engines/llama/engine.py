"""LlamaEngine: a GGUF model on the CPU that scores token ids and continues many prompts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.config import Runtime
from pipeline.engines.llama import batching, library
from pipeline.engines.llama.context import UBATCH, Context
from pipeline.kv.precision import Precision

LOGITS_BYTES = 256 << 20  # most memory for the logits of one batch
CACHE_BYTES = 2 << 30  # most memory for the keys and values of all prompts being continued
PRECISION = Precision("f32", "f32")


class LlamaEngine:
    """The pipeline's engine for GGUF files.

    Keys and values are kept in f32 without flash attention, so that encodings are compared and not caches, and the
    same settings give the same bits. With Q8_0 and Q4_0 a prompt's answer is also independent of the batch it ran
    in; F16 and K-quants round activations by batch shape, which can turn a tie between two tokens.
    """

    name = "llama.cpp"

    def __init__(self, path: str | Path, runtime: Runtime, batch_size: int):
        """Load a GGUF file; ``batch_size`` is how many prompts are continued at once."""
        self._model = library.load_model(path)
        self._threads = runtime.threads
        self._batch_size = batch_size

    def logits(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield logits as :class:`pipeline.engines.engine.Engine` says; each sequence is decoded by itself."""
        longest = max(map(len, sequences), default=1)
        rows = max(1, LOGITS_BYTES // (4 * library.vocabulary_size(self._model)))
        n_batch = min(longest, rows, UBATCH)
        with self._context(n_ctx=longest, n_batch=n_batch) as context:
            for ids, start in zip(sequences, starts, strict=True):
                yield _scored(context, ids, start)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: int) -> Iterator[list[int]]:
        """Yield greedy continuations in order, by continuous batching: a prompt starts where another has ended."""
        cells = max(map(len, prompts), default=1) + max_new_tokens
        fitting = CACHE_BYTES // PRECISION.kv_bytes(library.cache_shape(self._model), cells)
        slots = max(1, min(self._batch_size, len(prompts), fitting))
        n_batch = max(UBATCH, slots)
        with self._context(n_ctx=cells, n_seqs=slots, n_batch=n_batch) as context:
            yield from batching.in_order(batching.greedy(context, prompts, slots, max_new_tokens, stop))

    def _context(self, **sizes: int) -> Context:
        return Context(self._model, threads=self._threads, precision=PRECISION, **sizes)

    def close(self) -> None:
        """Free the model."""
        if self._model:
            library.free_model(self._model)
            self._model = None


def _scored(context: Context, ids: Sequence[int], start: int) -> np.ndarray:
    """Return the logits that predict ids[start:]; the last id itself is never fed."""
    context.clear()
    scores = np.empty((len(ids) - start, context.vocabulary), np.float32)
    for first in range(0, len(ids) - 1, context.n_batch):
        block = ids[first : min(first + context.n_batch, len(ids) - 1)]
        positions = np.arange(first, first + len(block))
        wanted = positions >= start - 1
        scores[positions[wanted] - (start - 1)] = context.decode(block, positions, wanted=wanted)
    return scores
