"""Attention over caches of our own, registered in transformers: it sees what the cache holds and ignores masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from pipeline.engines.cache import Watch
from pipeline.errors import UserError

NAME = "kv_policy"  # transformers makes no mask for an attention that it does not know
UNSUPPORTED = ("sliding_window", "softcap", "s_aux")  # variants of attention that a model may ask for


def register() -> None:
    """Make the attention known to transformers; doing it again changes nothing."""
    AttentionInterface.register(NAME, _attend)


@dataclass(frozen=True)
class TorchLayer:
    """One layer's entries, float32 [kv_heads, n, head_dim] each, keys after RoPE."""

    stored: Tensor
    values: Tensor

    @property
    def entries(self) -> int:
        """Entries of each KV head."""
        return self.stored.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.stored.nbytes + self.values.nbytes

    def keys(self) -> Tensor:
        """Return the keys."""
        return self.stored

    def gather(self, keep: Tensor) -> TorchLayer:
        """Return the entries int64 [kv_heads, m] of each head; raise RuntimeError for one that does not exist."""
        index = keep.unsqueeze(-1).expand(-1, -1, self.stored.shape[-1])
        return TorchLayer(self.stored.gather(1, index), self.values.gather(1, index))

    def with_keys(self, keys: Tensor) -> TorchLayer:
        """Return the same values under other keys."""
        return TorchLayer(keys, self.values)

    def joined(self, newer: TorchLayer) -> TorchLayer:
        """Return these entries and those of ``newer`` behind them."""
        return TorchLayer(torch.cat([self.stored, newer.stored], 1), torch.cat([self.values, newer.values], 1))


class Store:
    """Room for one layer's entries, taken once."""

    def __init__(self, kv_heads: int, cells: int, head_dim: int):
        self._keys = torch.empty(kv_heads, cells, head_dim)
        self._values = torch.empty(kv_heads, cells, head_dim)
        self.entries = 0

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put new entries [kv_heads, w, head_dim] behind those at hand; return all keys and values, views."""
        first, self.entries = self.entries, self.entries + keys.shape[1]
        if self.entries > self._keys.shape[1]:
            raise RuntimeError(f"{self.entries} entries for a layer with room for {self._keys.shape[1]}")
        self._keys[:, first : self.entries] = keys
        self._values[:, first : self.entries] = values
        return self._keys[:, : self.entries], self._values[:, : self.entries]

    @property
    def nbytes(self) -> int:
        """Bytes of the entries."""
        return self._keys[:, : self.entries].nbytes + self._values[:, : self.entries].nbytes

    def read(self) -> TorchLayer:
        """Return a copy of the entries."""
        return TorchLayer(self._keys[:, : self.entries].clone(), self._values[:, : self.entries].clone())

    def write(self, layer: TorchLayer) -> None:
        """Replace the entries."""
        self.entries = 0
        self.add(layer.stored, layer.values)


class Pass:
    """New tokens on their way through the layers: they fill the stores and show what is watched."""

    def __init__(self, stores: Sequence[Store], watch: Watch):
        self._stores, self._watch = stores, watch
        self.queries: list[Tensor] = []  # of every layer passed, the newest ones, [heads, w, head_dim]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Return what w queries [heads, w, head_dim] of a layer read, of all entries and their own tokens' up to each.

        Keys and values [kv_heads, w, head_dim] join the layer's entries.
        """
        all_keys, all_values = self._stores[layer].add(keys, values)
        if self._watch.queries:
            self.queries.append(queries[:, -self._watch.queries :].clone())
        if not self._watch.rows:
            return _fused(queries, all_keys, all_values, scale)
        rows = _rows(queries, all_keys, scale)
        self._watch.rows(layer, rows)
        return (rows.view(len(keys), -1, rows.shape[-1]) @ all_values).view(queries.shape)


def _attend(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask, scaling: float, *, kv_pass: Pass, **kwargs
) -> tuple[Tensor, None]:
    """Return [1, w, heads, head_dim], as transformers calls an attention; ``kv_pass`` comes through the model's call.

    Raises UserError where the model asks for more than softmax over everything.
    """
    asked = [f"{name} {kwargs[name]}" for name in UNSUPPORTED if kwargs.get(name) is not None]
    if asked:
        raise UserError(
            f"layer {module.layer_idx}: {', '.join(asked)}: KV policies expect plain attention in all layers"
        )
    read = kv_pass.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return read.transpose(0, 1).unsqueeze(0), None


def _fused(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    mask = _causal(queries.shape[1], keys.shape[1]) if queries.shape[1] > 1 else None
    read = F.scaled_dot_product_attention(
        queries.unsqueeze(0), keys.unsqueeze(0), values.unsqueeze(0), attn_mask=mask, scale=scale, enable_gqa=True
    )
    return read[0]


def _rows(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Return the attention weights [heads, w, n]."""
    heads, count, length = queries.shape
    scores = (queries.reshape(len(keys), -1, length) @ keys.transpose(1, 2) * scale).view(heads, count, -1)
    return torch.softmax(scores.masked_fill(~_causal(count, keys.shape[1]), -torch.inf), dim=-1)


def _causal(count: int, entries: int) -> Tensor:
    """Return which entries each of the newest ``count`` tokens sees, bool [count, entries]."""
    return torch.ones(count, entries, dtype=torch.bool).tril(entries - count)
