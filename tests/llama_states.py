"""Contexts of the tiny model: their states, what follows them, and transformers' caches of the same tokens."""

from __future__ import annotations

import numpy as np

from pipeline.engines.llama.context import Context
from pipeline.kv.precision import CacheShape, Precision

KINDS = ["f32", "f16", "q8_0", "q4_0"]
STORED = [*((kind, True) for kind in KINDS), ("f32", False), ("f16", False)]  # type, flash attention
TOKENS = 70
MORE = 20


def opened(model, kind: str, flash: bool, cells: int = 256) -> Context:
    return Context(model, n_ctx=cells, threads=1, precision=Precision(kind, kind), flash_attention=flash)


def prefilled(model, ids: list[int], kind: str, flash: bool) -> np.ndarray:
    """Return the state after the first tokens."""
    with opened(model, kind, flash) as context:
        context.decode(ids[:TOKENS], range(TOKENS))
        return context.state()


def continued(context: Context, ids: list[int]) -> np.ndarray:
    """Return the logits after each of the tokens that follow, fed one by one."""
    return np.stack([context.decode([ids[i]], [i])[0].copy() for i in range(TOKENS, TOKENS + MORE)])


def random_keep(shape: CacheShape, kept: int, seed: int = 0) -> np.ndarray:
    """Return other entries for every layer and KV head, in order, [layers, KV heads, kept]."""
    random = np.random.default_rng(seed)
    return np.stack(
        [
            [np.sort(random.choice(TOKENS, kept, replace=False)) for _ in range(shape.kv_heads)]
            for _ in range(shape.layers)
        ]
    )


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def torch_cache(torch_model, ids: list[int]):
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=torch_model.config)
    with torch.inference_mode():
        torch_model(torch.tensor([ids[:TOKENS]]), past_key_values=cache)
    return cache


def torch_evicted(torch_model, ids: list[int], keep: np.ndarray):
    """Return transformers' cache after each layer and head kept its own entries."""
    import torch

    cache = torch_cache(torch_model, ids)
    for layer, kept in zip(cache.layers, keep, strict=True):
        index = torch.tensor(kept)[None, :, :, None].expand(-1, -1, -1, layer.keys.shape[-1])
        layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
    return cache


def torch_continued(torch_model, ids: list[int], cache) -> np.ndarray:
    """Return transformers' logits of the tokens that follow."""
    import torch

    scores = []
    with torch.inference_mode():
        for i in range(TOKENS, TOKENS + MORE):
            output = torch_model(torch.tensor([[ids[i]]]), past_key_values=cache, position_ids=torch.tensor([[i]]))
            scores.append(output.logits[0, -1].numpy())
    return np.stack(scores)
