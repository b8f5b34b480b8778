"""TorchKvEngine: KV-cache policies on a transformers model, float32 on the CPU; layers may hold unequal numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline.config import Runtime
from pipeline.engines.cache import Room, Watch
from pipeline.engines.torch import attention
from pipeline.engines.torch.attention import Pass, Store, TorchLayer
from pipeline.errors import UserError
from pipeline.kv.precision import CacheShape, Precision
from pipeline.kv.rope import Rope
from pipeline.runtime import seed_torch

BLOCK = 512
ROWS_BLOCK = 128  # rows of a whole block are held at once
AS_STORED = (Precision(), Precision("f32", "f32"))  # the default is what every engine holds without being asked


class TorchKvEngine:
    """A model of any architecture that goes through transformers' attention interface, with plain attention.

    It serves as the reference of what a policy does to a model: every policy runs on it, per KV head.
    """

    name = "transformers"

    def __init__(self, model: PreTrainedModel):
        """Take over a float32 model on the CPU: its attention is replaced, so it works through this engine alone.

        Raises UserError if its positions are other than plain RoPE.
        """
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self._model = model.eval()
        self.shape = _shape(model.config)
        self.rope = _rope(model.config, self.shape.key_length)

    @classmethod
    def open(cls, directory: str | Path, runtime: Runtime) -> TorchKvEngine:
        """Load a model directory; raise UserError as the constructor does."""
        seed_torch(runtime)
        transformers_logging.disable_progress_bar()
        return cls(
            AutoModelForCausalLM.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
        )

    def cache(self, room: Room) -> TorchCache:
        """Return an empty cache; raise UserError for a precision other than f32."""
        _check(room.precision)
        return TorchCache(self._model, _stores(self.shape, room.cells), ROWS_BLOCK if room.rows else BLOCK)

    def pieces(self, bounds: Sequence[int], precision: Precision, tokens: int) -> TorchPieces:
        """Return the model cut before the layers ``bounds``; raise UserError like :meth:`cache`."""
        _check(precision)
        return TorchPieces(self._model, self.shape, [0, *bounds, self.shape.layers])

    def close(self) -> None:
        """Free the model."""
        self._model = None


class TorchCache:
    """One sequence's cache."""

    def __init__(self, model: PreTrainedModel, stores: Sequence[Store], block: int):
        self.block = block  # most tokens an append takes
        self._model, self._stores = model, stores

    @torch.no_grad()
    def append(
        self, ids: Sequence[int], position: int, wanted: np.ndarray, watch: Watch
    ) -> tuple[np.ndarray, list[Tensor]]:
        """Append as :class:`pipeline.engines.cache.Cache` says; raise RuntimeError beyond the room there is."""
        tokens = Pass(self._stores, watch)
        places = torch.arange(position, position + len(ids)).unsqueeze(0)
        body = self._model.base_model
        states = body(torch.tensor([list(ids)]), position_ids=places, use_cache=False, kv_pass=tokens).last_hidden_state
        logits = self._model.get_output_embeddings()(states[0, torch.from_numpy(wanted)])
        return logits.numpy(), tokens.queries

    def read(self) -> list[TorchLayer]:
        """Return a copy of every layer."""
        return [store.read() for store in self._stores]

    def write(self, layers: Sequence[TorchLayer], position: int) -> None:
        """Replace the contents; positions are the caller's to remember."""
        for store, layer in zip(self._stores, layers, strict=True):
            store.write(layer)

    def drop(self, count: int) -> None:
        """Take back the newest ``count`` tokens."""
        for store in self._stores:
            store.entries -= count

    def kv_bytes(self) -> int:
        """Return the measured bytes of all keys and values."""
        return sum(store.nbytes for store in self._stores)

    def close(self) -> None:
        """Free the memory."""
        self._stores = []


class TorchPieces:
    """A model whose layers are run range by range; nothing is kept between the pieces."""

    def __init__(self, model: PreTrainedModel, shape: CacheShape, bounds: Sequence[int]):
        self._model, self._shape, self._bounds = model, shape, bounds

    @torch.no_grad()
    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """Return the tokens' embeddings, float32 [n, width]."""
        return self._model.get_input_embeddings()(torch.tensor(list(ids))).numpy()

    @torch.no_grad()
    def run(
        self, piece: int, states: np.ndarray, positions: np.ndarray, queries: int
    ) -> tuple[np.ndarray, list[TorchLayer], list[Tensor]]:
        """Run one piece as :class:`pipeline.engines.cache.Pieces` says."""
        first, end = self._bounds[piece : piece + 2]
        body, count = self._model.base_model, len(states)
        stores = _stores(self._shape, [count if first <= layer < end else 0 for layer in range(self._shape.layers)])
        tokens = Pass(stores, Watch(queries))
        hidden, places = torch.from_numpy(states).unsqueeze(0), torch.from_numpy(positions).unsqueeze(0)
        turns = body.rotary_emb(hidden, places)
        for layer in body.layers[first:end]:
            hidden = layer(
                hidden,
                attention_mask=None,
                position_ids=places,
                position_embeddings=turns,
                use_cache=False,
                kv_pass=tokens,
            )
        made = [store.read() for store in stores[first:end]]
        if end == self._shape.layers:
            return self._logits(hidden[0, -1:]), made, tokens.queries
        return hidden[0].numpy(), made, tokens.queries

    def close(self) -> None:
        """Free the memory; nothing is held."""

    def _logits(self, states: Tensor) -> np.ndarray:
        """Return float32 [n, vocabulary] of states [n, width] that left the last layer."""
        return self._model.get_output_embeddings()(_final_norm(self._model.base_model)(states)).numpy()


def _stores(shape: CacheShape, cells: Sequence[int]) -> list[Store]:
    return [Store(shape.kv_heads, count, shape.key_length) for count in cells]


def _final_norm(body: torch.nn.Module) -> torch.nn.Module:
    """Return the norm behind the last layer: the one that is a direct part of the model's body."""
    return next(part for part in body.children() if type(part).__name__.endswith("Norm"))


def _check(precision: Precision) -> None:
    if precision not in AS_STORED:
        raise UserError(
            f"precision {precision.k} keys, {precision.v} values: transformers stores f32; take a GGUF for others"
        )


def _shape(config: PretrainedConfig) -> CacheShape:
    heads = config.num_attention_heads
    length = getattr(config, "head_dim", None) or config.hidden_size // heads
    return CacheShape(config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, length, length)


def _rope(config: PretrainedConfig, head_dim: int) -> Rope:
    rope = config.rope_parameters
    if rope.get("rope_type") != "default":
        raise UserError(
            f"{config.model_type}: rope_type {rope.get('rope_type')}: KV policies expect 'default', plain RoPE"
        )
    return Rope(float(rope["rope_theta"]), int(head_dim * rope.get("partial_rotary_factor", 1.0)))
