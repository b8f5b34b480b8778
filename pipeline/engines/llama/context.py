"""A llama.cpp context: tokens at positions in, logits out, and a KV cache that can be cut and copied."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.engines.llama import library
from pipeline.kv.precision import Precision

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}  # ggml's type numbers
DEFAULT = Precision()
POSITION_PARTS = {8: 4, 40: 4}  # by llama.cpp's number of the rotation: M-RoPE and interleaved M-RoPE
UBATCH = 512  # tokens computed at once
CELL_ALIGNMENT = 256  # llama.cpp rounds a context up to whole blocks of cells
STATE_HEADER_BYTES = 24  # magic, sequence, streams, cells, transposed, layers: 4 bytes each
STATE_CELL_BYTES = 12  # position, number of sequences, sequence
STATE_CELL_EXTRA_BYTES = 12  # x, y and token of a cell, where positions have several parts
STATE_ROW_HEADER_BYTES = 12  # K or V of a layer: type and row size


class ContextFull(RuntimeError):
    """A batch found no room in the cache: the caller sized the context too small."""


class Context:
    """Sequences of one model with their KV cache. Several sequences keep apart; cells are counted for each."""

    def __init__(
        self,
        model: Any,
        *,
        n_ctx: int,
        threads: int,
        n_seqs: int = 1,
        n_batch: int = UBATCH,
        ubatch: int = UBATCH,
        precision: Precision = DEFAULT,
        flash_attention: bool = False,
        observer: Any = None,
    ):
        """Make room for ``n_ctx`` cells a sequence; a batch holds ``n_batch`` tokens of all sequences together.

        ``ubatch`` of them are computed at once, which decides the size of the buffers. ``observer`` watches the
        tensors as they are computed, see :class:`pipeline.engines.llama.observer.Observer`.
        """
        self._llama = library.api()
        self._fields = dict(self._llama.llama_batch._fields_)
        self.model = model
        self.n_pos = POSITION_PARTS.get(self._llama.llama_model_rope_type(model), 1)
        self.cells = -(-n_ctx // CELL_ALIGNMENT) * CELL_ALIGNMENT
        self.vocabulary = library.vocabulary_size(model)
        settings = self._llama.llama_context_default_params()
        settings.n_ctx = self.cells * n_seqs
        settings.n_seq_max = n_seqs
        settings.n_batch = n_batch
        settings.n_ubatch = min(n_batch, ubatch)
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k, settings.type_v = KV_TYPES[precision.k], KV_TYPES[precision.v]
        settings.flash_attn_type = int(flash_attention)
        settings.kv_unified = n_seqs == 1
        settings.no_perf = True
        self._observer = observer  # kept alive: C holds its callback
        if observer is not None:
            settings.cb_eval = observer.callback
        self._context = self._llama.llama_init_from_model(model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp refuses a context of {n_seqs} x {self.cells} cells in {precision}")
        self._memory = self._llama.llama_get_memory(self._context)
        self.n_batch = self._llama.llama_n_batch(self._context)  # never more than there are cells

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the cache and the buffers."""
        if self._context:
            self._llama.llama_free(self._context)
            self._context = None

    def decode(
        self,
        ids: Sequence[int] | np.ndarray,
        positions: Sequence[int],
        sequences: Sequence[int] | None = None,
        wanted: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Append tokens and return float32 logits [wanted tokens, vocabulary], a view valid until the next call.

        Instead of ``ids``, float32 hidden states [n, width] enter the first layer as they are. ``sequences`` defaults
        to sequence 0, ``wanted`` to the last token alone. Raises ValueError for more than ``n_batch`` tokens.
        """
        count = len(ids)
        if count > self.n_batch:
            raise ValueError(f"a batch of {count} tokens: expected at most {self.n_batch}, feed it in blocks")
        places = np.asarray(positions, np.int32)
        owners = np.zeros(count, np.int32) if sequences is None else np.asarray(sequences, np.int32)
        outputs = np.arange(count) == count - 1 if wanted is None else np.asarray(wanted, bool)
        self._submit(self._entering(ids, places), owners, outputs.astype(np.int8))
        rows = int(outputs.sum())
        if not rows:
            return np.empty((0, self.vocabulary), np.float32)
        logits = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (rows, self.vocabulary))

    def _entering(self, ids: Sequence[int] | np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
        """Return what enters the first layer and its positions, by their names in llama.cpp's batch."""
        if np.ndim(ids) == 1:
            return {"token": np.asarray(ids, np.int32), "pos": places}
        states = np.ascontiguousarray(ids, np.float32)
        width = self._llama.llama_model_n_embd(self.model)
        if states.shape[1] != width:
            raise ValueError(f"hidden states of width {states.shape[1]} for a model of width {width}")
        return {"embd": states, "pos": np.tile(places, self.n_pos)}  # only of ids llama.cpp makes the parts itself

    def _submit(self, entering: dict[str, np.ndarray], owners: np.ndarray, outputs: np.ndarray) -> None:
        count = len(owners)
        one_each = np.ones(count, np.int32)
        owner_pointers = owners.ctypes.data + np.arange(count, dtype=np.uint64) * owners.itemsize
        batch = self._llama.llama_batch()
        for name, array in {
            **entering,
            "n_seq_id": one_each,
            "seq_id": owner_pointers,
            "logits": outputs,
        }.items():
            setattr(batch, name, ctypes.cast(array.ctypes.data, self._fields[name]))
        batch.n_tokens = count
        status = self._llama.llama_decode(self._context, batch)
        if status == 1:
            raise ContextFull(f"no room for {count} tokens in a cache of {self.cells} cells a sequence")
        if status:
            raise RuntimeError(f"llama_decode failed with status {status}")
        self._llama.llama_synchronize(self._context)

    def clear(self, sequence: int | None = None) -> None:
        """Forget a sequence, or everything."""
        if sequence is None:
            self._llama.llama_memory_clear(self._memory, False)
        else:
            self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def remove(self, start: int, stop: int, sequence: int = 0) -> None:
        """Drop the entries at positions [start, stop)."""
        if not self._llama.llama_memory_seq_rm(self._memory, sequence, start, stop):
            raise RuntimeError(f"this model's cache cannot drop positions {start} to {stop} alone")

    def state(self, sequence: int = 0) -> np.ndarray:
        """Return a copy of a sequence's cache as bytes."""
        data = np.empty(self.state_bytes(sequence), np.uint8)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = self._llama.llama_state_seq_get_data(self._context, pointer, data.size, sequence)
        if written != data.size:
            raise RuntimeError(f"llama.cpp wrote {written} of {data.size} bytes of state")
        return data

    def restore(self, state: np.ndarray, sequence: int = 0) -> None:
        """Put a sequence's cache back, in cells that follow one another; raise ContextFull if it does not fit."""
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if self._llama.llama_state_seq_set_data(self._context, pointer, state.size, sequence) != state.size:
            raise ContextFull(f"a state of {state.size} bytes does not fit into {self.cells} cells")

    def state_bytes(self, sequence: int = 0) -> int:
        """Return the size of a sequence's state: keys, values and their metadata."""
        return self._llama.llama_state_seq_get_size(self._context, sequence)

    def kv_bytes(self, layers: int, entries: int, sequence: int = 0) -> int:
        """Return the measured bytes of a sequence's keys and values: its state without the metadata."""
        cell = STATE_CELL_BYTES + (STATE_CELL_EXTRA_BYTES if self.n_pos > 1 else 0)
        metadata = STATE_HEADER_BYTES + entries * cell + 2 * layers * STATE_ROW_HEADER_BYTES
        return self.state_bytes(sequence) - metadata
