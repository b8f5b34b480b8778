"""TorchEngine: a model directory in transformers that scores token ids and continues prompts, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from pipeline.config import Runtime
from pipeline.engines.torch import batching
from pipeline.runtime import quiet, seed_torch

WINDOW_BATCHES = 8  # batches sorted by length together; their hidden states are held, never their logits


class TorchEngine:
    """The pipeline's engine for safetensors directories, compressed-tensors included.

    float32 on a CPU, so that encodings are compared and not their arithmetic; the checkpoint's own type on a GPU.
    """

    name = "transformers"

    def __init__(self, directory: str | Path, runtime: Runtime, batch_size: int):
        """Load a model directory; ``batch_size`` sequences are computed at once."""
        seed_torch(runtime)
        transformers_logging.disable_progress_bar()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if self._device.type == "cpu" else "auto"
        with quiet(), torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, local_files_only=True, trust_remote_code=False
            )
            self._model = model.eval().to(self._device)
            if self._device.type == "cpu":
                batching.group_heads(self._model)
            self._model(torch.zeros(1, 1, dtype=torch.long, device=self._device))  # the first pass decompresses
        self._batch_size = batch_size

    def logits(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield logits as :class:`pipeline.engines.engine.Engine` says, batched by length, in the given order."""
        head = self._model.get_output_embeddings()
        pairs = iter(zip(sequences, starts, strict=True))
        while window := list(islice(pairs, self._batch_size * WINDOW_BATCHES)):
            for states in self._hidden([ids for ids, _ in window], [start for _, start in window]):
                with torch.inference_mode():
                    scores = head(states).float().cpu().numpy()
                yield scores

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: int) -> Iterator[list[int]]:
        """Yield greedy continuations in order; prompts are padded on the left to the longest of their batch."""
        for first in range(0, len(prompts), self._batch_size):
            batch = prompts[first : first + self._batch_size]
            yield from batching.greedy(self._model, batch, max_new_tokens, stop)

    def close(self) -> None:
        """Free the model."""
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _hidden(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[torch.Tensor]:
        """Return for each sequence the last layer's states [len - start, width] that predict ids[start:].

        Padding stands on the right, where a causal model never looks, so batches need no mask.
        """
        states: list[torch.Tensor] = [None] * len(sequences)
        by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for first in range(0, len(by_length), self._batch_size):
            batch = by_length[first : first + self._batch_size]
            width = len(sequences[batch[-1]])
            ids = torch.tensor([list(sequences[i]) + [0] * (width - len(sequences[i])) for i in batch])
            with torch.inference_mode():
                output = self._model.base_model(ids.to(self._device), use_cache=False).last_hidden_state
            for row, i in zip(output, batch, strict=True):
                states[i] = row[starts[i] - 1 : len(sequences[i]) - 1].clone()
        return states
