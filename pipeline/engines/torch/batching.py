"""Greedy continuation of a batch in transformers: rows that have ended leave it, and a step copies no cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_grouped"
ROOM = 64  # entries of free room that a layer takes when it is full
LEAVE = 3 / 4  # rows are taken out when at most this share still runs: taking out copies the cache


def group_heads(model: PreTrainedModel) -> None:
    """Have a model that attends by torch's fused kernel read each KV head in place, not a copy for each query head.

    For the CPU: elsewhere the kernels that take a mask have no groups.
    """
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: int) -> list[list[int]]:
    """Return each prompt's continuation up to and including ``stop`` or the limit; prompts are padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[stop] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = _cache(model)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        output = model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        newest = output.logits[:, -1].argmax(-1)
        for row, token in zip(rows, newest.tolist(), strict=True):
            answers[row].append(token)
        running = [place for place, row in enumerate(rows) if stop not in answers[row]]
        if not running:
            break
        ids, positions, mask = newest[:, None], positions[:, -1:] + 1, F.pad(mask, (0, 1), value=1)
        if len(running) <= LEAVE * len(rows):
            kept = torch.tensor(running, device=model.device)
            cache.batch_select_indices(kept)
            ids, positions, mask, rows = ids[kept], positions[kept], mask[kept], [rows[place] for place in running]
    return [answer[: answer.index(stop) + 1] if stop in answer else answer for answer in answers]


def _cache(model: PreTrainedModel) -> DynamicCache:
    """Return the model's own kind of cache, with room in the layers that hold everything."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """A layer's entries with free room behind them, so that new ones are written and none is copied."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put new entries [rows, kv_heads, tokens, head_dim] behind those at hand; return all, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = key_states[:, :, :0], value_states[:, :, :0]
        held = self.get_seq_length()
        whole = held + key_states.shape[2]
        if whole > self._room[0].shape[2]:
            self._room = tuple(F.pad(old[:, :, :held], (0, 0, 0, whole - held + ROOM)) for old in self._room)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, held:whole] = new
        self.keys, self.values = (room[:, :, :whole] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices`` alone."""
        held = self.get_seq_length()
        self._room = tuple(room[indices] for room in self._room)
        self.keys, self.values = (room[:, :, :held] for room in self._room)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return [rows, tokens, heads, head_dim], as transformers calls an attention; prompts go to its own function."""
    if query.shape[2] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True)
    return read.transpose(1, 2).contiguous(), None
