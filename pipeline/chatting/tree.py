"""A value made of known classes, lists and arrays as JSON and named arrays, and back; nothing else is ever built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.engines.llama.kv import LlamaLayer
from pipeline.engines.llama.state import LayerState
from pipeline.engines.snapshot import Checkpoint, Snapshot
from pipeline.engines.summary.account import Account
from pipeline.engines.summary.ledger import Ledger, Passage
from pipeline.kv.evidence import Queries
from pipeline.kv.running import Column, Hits, Means, Sums

_KNOWN = (Checkpoint, Snapshot, LlamaLayer, LayerState, Queries, Sums, Means, Hits, Column, Ledger, Passage, Account)
CLASSES = {one.__name__: one for one in _KNOWN}


def flat(value: Any, arrays: dict[str, np.ndarray], name: str = "state") -> Any:
    """Return a value as JSON; its arrays and tensors go into ``arrays`` under names that tell where they stood."""
    if isinstance(value, Tensor):
        return {"tensor": flat(value.numpy(), arrays, name)["array"]}
    if isinstance(value, np.ndarray):
        arrays[name] = np.ascontiguousarray(value)
        return {"array": name}
    if is_dataclass(value):
        if type(value) is not CLASSES.get(type(value).__name__):
            raise TypeError(f"{name}: a {type(value).__name__} is not among {', '.join(CLASSES)}")
        parts = {f.name: flat(getattr(value, f.name), arrays, f"{name}.{f.name}") for f in fields(value)}
        return {"class": type(value).__name__, "fields": parts}
    if isinstance(value, list):
        return [flat(item, arrays, f"{name}.{index}") for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": flat(list(value), arrays, name)}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name}: a {type(value).__name__} cannot be saved")


def built(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Return what :func:`flat` was given; raise KeyError or TypeError for what it never made."""
    if isinstance(value, list):
        return [built(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return torch.from_numpy(arrays[value["tensor"]])
    if "tuple" in value:
        return tuple(built(value["tuple"], arrays))
    if "range" in value:
        return range(*value["range"])
    if "array" in value:
        return arrays[value["array"]]
    return CLASSES[value["class"]](**{name: built(part, arrays) for name, part in value["fields"].items()})
