"""A ctypes mirror of ggml's tensors: their names, shapes and operations, and views of the data of those on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache

import numpy as np

from pipeline.engines.llama import library

DIMENSIONS = 4
SOURCES = 10
NAME_BYTES = 64
FLOATS = {0: np.dtype(np.float32), 1: np.dtype(np.float16)}  # by ggml's type numbers
CACHE = b"cache_"
OPERATIONS = 60  # numbers to search for an operation's; ggml has more of them than this


class Tensor(ctypes.Structure):
    """``struct ggml_tensor`` of the pinned release."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * DIMENSIONS),  # length of each dimension, the innermost first
    ("nb", ctypes.c_size_t * DIMENSIONS),  # its stride in bytes
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * SOURCES),
    ("view_src", ctypes.POINTER(Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * NAME_BYTES),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]

OPERATION_AT, NAME_AT = Tensor.op.offset, Tensor.name.offset
_int_at = ctypes.c_int.from_address  # looked up once: asked for every node of every graph


def name(address: int) -> bytes:
    """Return the name of the tensor at an address, without reading anything else of it."""
    return ctypes.string_at(address + NAME_AT)


def operation_of(address: int) -> int:
    """Return ggml's number of the operation that gives the tensor at an address."""
    return _int_at(address + OPERATION_AT).value


@cache
def operation_number(name: str) -> int:
    """Return ggml's number of an operation such as ROPE; raise RuntimeError if the build has none of this name."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)
    name_of = prototype(("ggml_op_name", library.api().llama_cpp._lib))
    for number in range(OPERATIONS):
        if name_of(number) == name.encode():
            return number
    raise RuntimeError(f"ggml has no operation {name} among its first {OPERATIONS}")


def shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the lengths of the four dimensions, the outermost first as numpy has them."""
    return tuple(tensor.ne)[::-1]


def array(tensor: Tensor, dimensions: int = DIMENSIONS) -> np.ndarray:
    """Return a view of an f32 or f16 tensor with its innermost ``dimensions``; the others must be of length 1.

    The data must lie in the CPU's memory, and the view is valid as long as ggml keeps them. Raises RuntimeError for
    another type or shape.
    """
    lengths, strides = shape(tensor), tuple(tensor.nb)[::-1]
    outer = DIMENSIONS - dimensions
    if tensor.type not in FLOATS or not tensor.data or any(length != 1 for length in lengths[:outer]):
        raise RuntimeError(
            f"tensor {tensor.name.decode()} has type {tensor.type} and shape {lengths}, "
            f"expected f32 or f16 data of {dimensions} dimensions"
        )
    return np.ndarray(lengths[outer:], FLOATS[tensor.type], _memory(tensor), 0, strides[outer:])


def rows(tensor: Tensor) -> np.ndarray:
    """Return a view of a tensor's stored bytes, uint8 [rows, row bytes], whatever its type."""
    count = tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
    return np.ndarray((count, tensor.nb[1]), np.uint8, _memory(tensor))


def _memory(tensor: Tensor) -> ctypes.Array:
    size = tensor.ne[DIMENSIONS - 1] * tensor.nb[DIMENSIONS - 1]
    return (ctypes.c_uint8 * size).from_address(tensor.data)


def cache_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors of the KV cache, cache_k_l0, cache_v_l0 and so on, that a tensor is computed from."""
    for source in tensor.src:
        if source:
            root = source.contents
            while root.view_src:
                root = root.view_src.contents
            if root.name.startswith(CACHE):
                yield root
