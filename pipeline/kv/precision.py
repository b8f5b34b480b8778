"""How many bytes a KV cache takes: the types that keys and values are stored in, and the accounting rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

KvType = Literal["f32", "f16", "q8_0", "q4_0"]
BLOCKS: dict[str, tuple[int, int]] = {"f32": (1, 4), "f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}  # values, bytes


@dataclass(frozen=True)
class CacheShape:
    """What one entry of a model's cache consists of."""

    layers: int
    kv_heads: int
    key_length: int  # values of one head's key
    value_length: int


@dataclass(frozen=True)
class Precision:
    """The storage type of keys and of values, scales included in its bytes."""

    k: KvType = "f16"
    v: KvType = "f16"

    @property
    def quantised(self) -> bool:
        """Whether keys or values are stored in blocks with a scale."""
        return any(BLOCKS[kind][0] > 1 for kind in (self.k, self.v))

    def kv_bytes(self, shape: CacheShape, entries: int) -> int:
        """Return the bytes of ``entries`` entries: the sum over layers and KV heads of key and value bytes."""
        head = _bytes(self.k, shape.key_length) + _bytes(self.v, shape.value_length)
        return shape.layers * shape.kv_heads * entries * head

    def problems(self, shape: CacheShape) -> Iterator[str]:
        """Yield what is wrong with these types for a model of this shape."""
        for part, kind, length in (("key", self.k, shape.key_length), ("value", self.v, shape.value_length)):
            block = BLOCKS[kind][0]
            if length % block:
                yield f"{kind} holds {block} values a block, which does not divide this model's {part} length {length}"


F16 = Precision()


def _bytes(kind: str, values: int) -> int:
    block, size = BLOCKS[kind]
    return values // block * size
