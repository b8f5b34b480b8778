"""The protocol of a place where a model runs: score token ids, continue prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.config import Runtime


class Engine(Protocol):
    """A loaded model. Sequences are token ids; nothing here knows of text."""

    name: str  # as the report names it: transformers or llama.cpp

    def logits(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield for each sequence, in order, float32 logits [len - start, vocabulary] that predict ids[start:].

        Row i is the model's output at position start + i - 1, so ``start`` is at least 1.
        """

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: int) -> Iterator[list[int]]:
        """Yield for each prompt, in order, its greedy continuation up to and including ``stop`` or the limit."""

    def close(self) -> None:
        """Free the model's memory."""


def open_engine(directory: str | Path, runtime: Runtime, batch_size: int) -> Engine:
    """Load the model of an artifact directory: a GGUF in llama.cpp, anything else in transformers."""
    gguf = sorted(Path(directory).glob("*.gguf"))
    if gguf:
        from pipeline.engines.llama.engine import LlamaEngine

        return LlamaEngine(gguf[0], runtime, batch_size)
    from pipeline.engines.torch.engine import TorchEngine

    return TorchEngine(directory, runtime, batch_size)
