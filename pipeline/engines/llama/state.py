"""The bytes of one sequence's KV cache: parsed into layers without a copy, gathered per KV head, and built again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.engines.llama import codec
from pipeline.kv.precision import BLOCKS, CacheShape, KvType

MAGIC = 0xAF143CD8
KINDS: dict[int, KvType] = {0: "f32", 1: "f16", 2: "q4_0", 8: "q8_0"}  # ggml's type numbers
NUMBERS = {kind: number for number, kind in KINDS.items()}
HEADER = np.dtype([("magic", "<u4"), ("sequence", "<i4"), ("streams", "<u4"), ("cells", "<u4")])
LAYOUT = np.dtype([("transposed", "<u4"), ("layers", "<u4")])
ROWS = np.dtype([("type", "<i4"), ("row_bytes", "<u8")])
COLUMNS = np.dtype([("type", "<i4"), ("element_bytes", "<u4"), ("width", "<u4")])
TILE = 16  # elements copied together where values are transposed
EXTRA_FIELDS = 3  # x, y and token of a cell, where positions have several parts
NO_TOKEN = -1  # what llama.cpp notes for cells that hidden states were fed to


@dataclass(frozen=True)
class LayerState:
    """Keys and values of one layer as llama.cpp stores them."""

    k_kind: KvType
    v_kind: KvType
    keys: np.ndarray  # uint8 [n, KV heads, head bytes]
    values: np.ndarray  # uint8, rows like the keys or, without flash attention, [KV heads, head length, n, bytes]

    @property
    def entries(self) -> int:
        """Entries in the layer's cache."""
        return len(self.keys)

    @property
    def transposed(self) -> bool:
        """Whether the values are stored element by element, as a context without flash attention has them."""
        return self.values.ndim == 4

    def keys_f32(self) -> np.ndarray:
        """Return the keys, RoPE in them, as float32 [KV heads, n, head length]."""
        return codec.decode_heads(self.k_kind, self.keys.swapaxes(0, 1), "k")

    def values_f32(self) -> np.ndarray:
        """Return the values as float32 [KV heads, n, head length]."""
        if self.transposed:
            return _elements(self).swapaxes(1, 2).astype(np.float32, order="C")
        return codec.decode_heads(self.v_kind, self.values.swapaxes(0, 1), "v")

    def gather(self, keep: np.ndarray) -> LayerState:
        """Return the entries ``keep``, int64 [KV heads, m], each head its own in their order; values keep their layout.

        Raises IndexError for an entry that does not exist.
        """
        keys = _gathered(self.keys, keep)
        if not self.transposed:
            return replace(self, keys=keys, values=_gathered(self.values, keep))
        elements = _elements(self)
        kept = np.stack([elements[head].take(own, axis=1) for head, own in enumerate(keep)])
        return replace(self, keys=keys, values=kept.view(np.uint8).reshape(*kept.shape, kept.itemsize))

    def with_keys(self, keys: np.ndarray) -> LayerState:
        """Return the layer with other keys, float32 [KV heads, m, head length], encoded like its own."""
        return replace(self, keys=codec.encode_heads(self.k_kind, keys.swapaxes(0, 1), "k"))

    def joined(self, newer: LayerState) -> LayerState:
        """Return these entries and those of ``newer`` behind them, whose values take on this layout.

        Raises ValueError if they are stored in other types.
        """
        if not self.entries or not newer.entries:  # an empty cache does not tell its types
            return self if self.entries else newer
        if (self.k_kind, self.v_kind) != (newer.k_kind, newer.v_kind):
            raise ValueError(
                f"entries in {newer.k_kind}/{newer.v_kind} cannot stand behind ones in {self.k_kind}/{self.v_kind}"
            )
        newer_values = newer.values
        if newer.transposed != self.transposed:
            arranged = np.ascontiguousarray(_arranged(newer, self.transposed))
            newer_values = arranged.view(np.uint8).reshape(*arranged.shape[: 3 if self.transposed else 2], -1)
        values = np.concatenate([self.values, newer_values], axis=2 if self.transposed else 0)
        return replace(self, keys=np.concatenate([self.keys, newer.keys]), values=values)


def _gathered(rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
    n, heads, size = rows.shape
    if keep.size and not -n <= keep.min() <= keep.max() < n:
        raise IndexError(f"entries {keep.min()} to {keep.max()} of {n}")
    flat = (keep % max(n, 1) * heads + np.arange(heads)[:, None]).T
    return rows.reshape(n * heads, size).take(flat, axis=0)


def _elements(layer: LayerState) -> np.ndarray:
    """Return transposed values as their floats, [KV heads, head length, n]."""
    return layer.values.view(codec.FLOATS[layer.v_kind])[..., 0]


class _Reader:
    """A cursor over a state's bytes."""

    def __init__(self, data: np.ndarray):
        self._data = data
        self._at = 0

    def take(self, size: int) -> np.ndarray:
        """Return the next bytes, a view."""
        self._at += size
        if self._at > self._data.size:
            raise RuntimeError(f"a state of {self._data.size} bytes ends within its parts: {self._at} are needed")
        return self._data[self._at - size : self._at]

    def record(self, dtype: np.dtype) -> np.void:
        """Return the next header."""
        return self.take(dtype.itemsize).view(dtype)[0]

    def end(self) -> None:
        """Raise RuntimeError unless everything was read."""
        left = self._data.size - self._at
        if left:
            raise RuntimeError(f"a state of {self._data.size} bytes has {left} after its last layer")


def parse(data: np.ndarray, shape: CacheShape, *, n_pos: int = 1) -> list[LayerState]:
    """Return the layers of a sequence's state, uint8 [bytes], as views of it.

    ``n_pos`` is how many parts a position has: 4 for architectures with M-RoPE, whose cells carry more metadata.
    Raises RuntimeError if the bytes are not the state of one sequence of a model of this shape.
    """
    reader = _Reader(data)
    cells = len(_cells(reader, n_pos))
    if not cells:
        reader.end()
        return [_empty_layer(shape) for _ in range(shape.layers)]
    layout = reader.record(LAYOUT)
    _expect("layers", layout["layers"], shape.layers)
    keys = [_rows(reader, cells, shape.kv_heads, shape.key_length) for _ in range(shape.layers)]
    read = _columns if layout["transposed"] else _rows
    values = [read(reader, cells, shape.kv_heads, shape.value_length) for _ in range(shape.layers)]
    reader.end()
    return [LayerState(k_kind, v_kind, k, v) for (k_kind, k), (v_kind, v) in zip(keys, values, strict=True)]


def positions(data: np.ndarray, *, n_pos: int = 1) -> np.ndarray:
    """Return the positions of a state's entries, int32 [n]; raise RuntimeError like :func:`parse`."""
    return _cells(_Reader(data), n_pos)[:, 0].copy()


def _cells(reader: _Reader, n_pos: int) -> np.ndarray:
    """Return the metadata of the cells, int32 [n, fields]: position, number of sequences, ..., sequence."""
    header = reader.record(HEADER)
    if header["magic"] != MAGIC:
        raise RuntimeError(f"a state starts with {header['magic']:#x}, expected {MAGIC:#x}: another llama.cpp wrote it")
    _expect("streams", header["streams"], 1)
    fields = 3 + (EXTRA_FIELDS if n_pos > 1 else 0)
    cells = reader.take(int(header["cells"]) * 4 * fields).view("<i4").reshape(-1, fields)
    if (cells[:, 1] != 1).any():
        raise RuntimeError("a state's cells belong to other than one sequence each, or have other metadata")
    return cells


def _rows(reader: _Reader, cells: int, heads: int, length: int) -> tuple[KvType, np.ndarray]:
    header = reader.record(ROWS)
    kind = _kind(header["type"])
    size = _head_bytes(kind, length)
    _expect("bytes in a row", header["row_bytes"], heads * size)
    return kind, reader.take(cells * heads * size).reshape(cells, heads, size)


def _columns(reader: _Reader, cells: int, heads: int, length: int) -> tuple[KvType, np.ndarray]:
    header = reader.record(COLUMNS)
    kind = _kind(header["type"])
    size = _head_bytes(kind, 1)
    _expect("bytes in a value", header["element_bytes"], size)
    _expect("values in an entry", header["width"], heads * length)
    return kind, reader.take(cells * heads * length * size).reshape(heads, length, cells, size)


def _kind(number: int) -> KvType:
    if number not in KINDS:
        raise RuntimeError(f"a state stores type {number}, expected one of {KINDS}")
    return KINDS[int(number)]


def _expect(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"a state has {found} {what}, expected {expected}")


def _head_bytes(kind: KvType, length: int) -> int:
    block, size = BLOCKS[kind]
    return length * size // block


def _empty_layer(shape: CacheShape) -> LayerState:
    """Return a layer without entries; the state of an empty cache does not tell its types."""
    keys, values = (
        np.empty((0, shape.kv_heads, _head_bytes("f16", n)), np.uint8) for n in (shape.key_length, shape.value_length)
    )
    return LayerState("f16", "f16", keys, values)


def build(layers: Sequence[LayerState], positions: np.ndarray, transposed: bool, *, n_pos: int = 1) -> np.ndarray:
    """Return the state, uint8 [bytes], of a sequence with these layers and positions, int32 [n].

    ``transposed`` is for a context without flash attention, whose values must be f32 or f16. The context that takes
    it must store the same types; its size is free. ``n_pos`` is as in :func:`parse`; all parts of a position are
    then the same, as text has them. Raises ValueError if the layers or the
    positions differ in number of entries, or if quantised values would have to be transposed.
    """
    cells = len(positions)
    _check(layers, cells, transposed)
    parts = [_record(HEADER, MAGIC, 0, 1, cells), _metadata(positions, n_pos)]
    if cells:
        parts.append(_record(LAYOUT, transposed, len(layers)))
        for layer in layers:
            parts += [_record(ROWS, NUMBERS[layer.k_kind], layer.keys[0].size), layer.keys]
        for layer in layers:
            parts += [_values_header(layer, transposed), _arranged(layer, transposed)]
    return _joined(parts)


def _metadata(positions: np.ndarray, n_pos: int) -> np.ndarray:
    one, sequence = np.ones_like(positions), np.zeros_like(positions)
    extra = [positions, positions, np.full_like(positions, NO_TOKEN)] if n_pos > 1 else []
    return np.stack([positions, one, *extra, sequence], axis=1).astype("<i4")


def _check(layers: Sequence[LayerState], cells: int, transposed: bool) -> None:
    counts = {layer.entries for layer in layers} | {_value_entries(layer) for layer in layers}
    if counts != {cells}:
        raise ValueError(f"layers of {sorted(counts)} entries for {cells} positions: every layer needs as many")
    quantised = {layer.v_kind for layer in layers} - codec.FLOATS.keys()
    if transposed and quantised:
        raise ValueError(f"values in {quantised} cannot be transposed: without flash attention they must be f32 or f16")


def _value_entries(layer: LayerState) -> int:
    return layer.values.shape[2] if layer.transposed else len(layer.values)


def _values_header(layer: LayerState, transposed: bool) -> np.ndarray:
    number = NUMBERS[layer.v_kind]
    row_bytes = layer.values.size // layer.entries
    if not transposed:
        return _record(ROWS, number, row_bytes)
    element = _head_bytes(layer.v_kind, 1)
    return _record(COLUMNS, number, element, row_bytes // element)


def _arranged(layer: LayerState, transposed: bool) -> np.ndarray:
    """Return a view of the values, in their floats where they change between rows and transposed elements."""
    if layer.transposed == transposed:
        return layer.values
    if layer.transposed:
        return _elements(layer).transpose(2, 0, 1)
    return layer.values.view(codec.FLOATS[layer.v_kind]).transpose(1, 2, 0)


def _record(dtype: np.dtype, *fields: int) -> np.ndarray:
    return np.array([fields], dtype)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the bytes of all parts one after another, each copied once."""
    data = np.empty(sum(part.nbytes for part in parts), np.uint8)
    at = 0
    for part in parts:
        _copy(part, data[at : at + part.nbytes].view(part.dtype).reshape(part.shape))
        at += part.nbytes
    return data


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    if source.flags.c_contiguous:
        target[...] = source
        return
    for start in range(0, source.shape[-1], TILE):  # a transposition at once would leave the CPU's cache at each step
        target[..., start : start + TILE] = source[..., start : start + TILE]
