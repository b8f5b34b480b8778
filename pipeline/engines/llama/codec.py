"""The types that llama.cpp stores keys and values in: bytes to float32 and back, and its rotation of heads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from pipeline.engines.llama import library
from pipeline.kv.precision import BLOCKS, KvType

Part = Literal["k", "v"]
FLOATS = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}
TORCH = {"f32": torch.float32, "f16": torch.float16}
SMALLEST_ROTATION = 64


def decode(kind: KvType, raw: np.ndarray) -> np.ndarray:
    """Return uint8 [..., bytes] of one type as float32 [..., n]; contiguous; f32 as it is, a view."""
    if kind in FLOATS:
        values = torch.from_numpy(raw.view(FLOATS[kind]))  # torch converts f16 seven times as fast as numpy
        wide = values.to(torch.float32, memory_format=torch.contiguous_format)  # in one pass, not two
        return wide.contiguous().numpy()  # of float32 nothing was copied so far
    raw = np.ascontiguousarray(raw)
    block, size = BLOCKS[kind]
    values = np.empty((*raw.shape[:-1], raw.shape[-1] // size * block), np.float32)
    _ggml(f"dequantize_row_{kind}")(raw.ctypes.data, values.ctypes.data, values.size)
    return values


def encode(kind: KvType, values: np.ndarray) -> np.ndarray:
    """Return float32 [..., n] as uint8 [..., bytes], bit for bit what llama.cpp stores for these values on this CPU.

    Raises ValueError if n is not a whole number of the type's blocks.
    """
    if kind in FLOATS:
        stored = torch.from_numpy(np.ascontiguousarray(values)).to(TORCH[kind])
        return stored.numpy().view(np.uint8)
    values = np.ascontiguousarray(values, np.float32)
    block, size = BLOCKS[kind]
    if values.shape[-1] % block:
        raise ValueError(f"{kind} holds {block} values a block, which does not divide {values.shape[-1]}")
    raw = np.empty((*values.shape[:-1], values.shape[-1] // block * size), np.uint8)
    # The CPU's own routine: it rounds ties unlike the reference that files are quantised with.
    _ggml(f"quantize_row_{kind}")(values.ctypes.data, raw.ctypes.data, values.size)
    return raw


def _ggml(name: str) -> Callable[[int, int, int], None]:
    """Return a conversion of ggml: (source address, target address, number of values)."""
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return prototype((name, library.api().llama_cpp._lib))


def hadamard(n: int) -> np.ndarray:
    """Return the Walsh-Hadamard matrix, float32 [n, n] for a power of two: symmetric, orthonormal, its own inverse."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(np.float32(n))


def rotation(kind: KvType, length: int, part: Part) -> int:
    """Return how many values of a head of ``length`` llama.cpp rotates together before it stores them, 1 for none.

    Only quantised types are rotated, against outliers (QuaRot, arXiv:2404.00456), in heads of whole blocks of 64:
    keys by the largest power of two that divides the head, values by 64. The environment variable
    LLAMA_ATTN_ROT_DISABLE switches it off.
    """
    off = os.environ.get("LLAMA_ATTN_ROT_DISABLE", "") not in ("", "0")
    if kind in FLOATS or length % SMALLEST_ROTATION or off:
        return 1
    return length & -length if part == "k" else SMALLEST_ROTATION


def decode_heads(kind: KvType, raw: np.ndarray, part: Part) -> np.ndarray:
    """Return stored heads, uint8 [..., head bytes], as float32 [..., head length] in the model's own basis."""
    return _rotated(decode(kind, raw), kind, part)


def encode_heads(kind: KvType, values: np.ndarray, part: Part) -> np.ndarray:
    """Return heads in the model's own basis, float32 [..., head length], as llama.cpp stores them."""
    return encode(kind, _rotated(values, kind, part))


def _rotated(values: np.ndarray, kind: KvType, part: Part) -> np.ndarray:
    size = rotation(kind, values.shape[-1], part)
    if size == 1:
        return values
    return (values.reshape(-1, size) @ hadamard(size)).reshape(values.shape)
