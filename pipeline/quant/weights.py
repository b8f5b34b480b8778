"""What a directory of safetensors files holds, from their headers alone: names, types, shapes and bytes."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import NamedTuple


class Stored(NamedTuple):
    """One tensor on disk."""

    file: Path
    name: str
    dtype: str  # safetensors' name: BF16, F16, F32, I32, F8_E4M3 ...
    shape: tuple[int, ...]
    bytes: int


def stored(directory: Path) -> list[Stored]:
    """Return the tensors of all safetensors files of a directory, in the files' own order."""
    return [tensor for file in sorted(directory.glob("*.safetensors")) for tensor in _read(file)]


def count_parameters(directory: Path) -> int:
    """Return the number of weights that an unquantised model directory stores; tied ones are stored once."""
    return sum(math.prod(tensor.shape) for tensor in stored(directory))


def _read(file: Path) -> list[Stored]:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return [
        Stored(file, name, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    ]
