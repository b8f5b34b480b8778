"""Watching tensors as llama.cpp computes them: attention, queries and hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from pipeline.engines.llama import library, state, tensor
from pipeline.engines.llama.context import Context
from pipeline.errors import UserError
from pipeline.kv.precision import CacheShape

Taker = Callable[[int, np.ndarray], None]


@dataclass(frozen=True)
class Signal:
    """A tensor that can be listened to."""

    dimensions: int
    operation: str  # of several tensors with its name, the one that this operation gives


SIGNALS = {
    "kq_soft_max": Signal(3, "SOFT_MAX"),  # [heads, queries, cells]; without flash attention alone
    "Qcur": Signal(3, "ROPE"),  # [queries, heads, head length], rotated to their positions
    "l_out": Signal(2, "ADD"),  # [queries, width], a layer's output; of the last, the rows that logits are wanted of
}


@dataclass
class _Session:
    """What is listened to, and how it went."""

    takers: Mapping[str, Taker]
    failure: BaseException | None = None
    names: tuple[bytes, ...] = ()  # how the tensors' names begin
    operations: frozenset[int] = frozenset()  # that give them

    def __post_init__(self) -> None:
        self.names = tuple(f"{prefix}-".encode() for prefix in self.takers)
        self.operations = frozenset(tensor.operation_number(SIGNALS[prefix].operation) for prefix in self.takers)


class Observer:
    """The evaluation callback of a context; until something listens, it asks for nothing."""

    def __init__(self) -> None:
        self._session: _Session | None = None
        self.callback = library.api().ggml_backend_sched_eval_callback(self._evaluate)  # kept alive here

    @contextmanager
    def listen(self, takers: Mapping[str, Taker]) -> Iterator[None]:
        """Hand each tensor of these signals to its taker as (layer, float32 view valid only during the call).

        The shapes are those of ``SIGNALS``; a batch larger than a ubatch calls for each ubatch. An exception in a
        taker ends the graph, nothing is taken any more, and it is raised from here: the logits are worthless then,
        and so are the cells of these tokens. Raises ValueError for a signal that does not exist, RuntimeError if
        something listens already.
        """
        if unknown := takers.keys() - SIGNALS.keys():
            raise ValueError(f"no such signals: {sorted(unknown)}, expected some of {sorted(SIGNALS)}")
        if self._session:
            raise RuntimeError("an observer listens for one purpose at a time")
        session = self._session = _Session(takers)
        try:
            yield
        finally:
            self._session = None
            if session.failure:
                raise session.failure

    def _evaluate(self, address: int, ask: bool, _: Any) -> bool:
        """Answer ggml: before a node, whether it is wanted; after a wanted one, whether to go on."""
        session = self._session
        if session is None:
            return not ask
        if session.failure:
            return ask  # a break leaves only its part of the graph: be asked again, and break again
        if ask and tensor.operation_of(address) not in session.operations:
            return False  # most nodes of every graph: told by a number
        try:
            if ask:
                return _wanted(session, address)
            prefix, layer = _signal(address)
            session.takers[prefix](layer, tensor.array(tensor.Tensor.from_address(address), SIGNALS[prefix].dimensions))
        except BaseException as error:  # C cannot carry it: it is raised where listening ends
            session.failure = error
            return ask
        return True


def _wanted(session: _Session, address: int) -> bool:
    """Tell whether a node, which one of the operations gives, is listened to."""
    if not tensor.name(address).startswith(session.names):
        return False
    prefix, _ = _signal(address)
    return prefix in session.takers and _gives(address, prefix)


def _gives(address: int, prefix: str) -> bool:
    """Tell whether a node comes of the operation that gives a signal."""
    return tensor.operation_of(address) == tensor.operation_number(SIGNALS[prefix].operation)


def _signal(address: int) -> tuple[str, int]:
    """Return prefix and layer of a tensor's name, ("", -1) if it has no layer."""
    prefix, _, layer = tensor.name(address).rpartition(b"-")
    return (prefix.decode(), int(layer)) if layer.isdigit() else ("", -1)


IDS = range(4)  # tokens of the self-test
CELLS = 256


class _Probe:
    """An evaluation callback that notes the tensors of the first graph it sees, and stops nothing."""

    def __init__(self) -> None:
        self.cache: dict[str, tensor.Tensor] = {}
        self.shapes: dict[tuple[str, int], tuple[int, ...]] = {}
        self.failure: Exception | None = None
        self.callback = library.api().ggml_backend_sched_eval_callback(self._evaluate)

    def _evaluate(self, address: int, ask: bool, _: Any) -> bool:
        try:
            if ask and not self.failure:
                self._note(address)
        except Exception as error:
            self.failure = error
        return not ask

    def _note(self, address: int) -> None:
        node = tensor.Tensor.from_address(address)
        for found in tensor.cache_tensors(node):
            self.cache[found.name.decode()] = found
        prefix, layer = _signal(address)
        if prefix in SIGNALS and _gives(address, prefix):
            self.shapes[prefix, layer] = tensor.shape(node)


@cache
def selftest(model: Any) -> None:
    """Check, once for a model and process, that our mirror of llama.cpp's structures fits the installed build.

    Decodes a few tokens with flash attention and compares the bytes of the cache's tensors with those of the state,
    and the names and shapes of the signals with what is expected. Raises UserError that names both versions.
    """
    library.check_version()
    problem = _problem(model)
    if problem:
        installed = metadata.version(library.PACKAGE)
        raise UserError(
            f"{library.PACKAGE}: {installed} is installed, but its structures are not those of {library.PINNED} that "
            f"the engine mirrors: {problem}; run `make env`"
        )


def _problem(model: Any) -> str | None:
    probe = _Probe()
    shape = library.cache_shape(model)
    with Context(model, n_ctx=CELLS, threads=1, flash_attention=True, observer=probe) as context:
        context.decode(IDS, IDS, wanted=[True] * len(IDS))
        if probe.failure:
            return f"a tensor cannot be read ({probe.failure})"
        try:
            layers = state.parse(context.state(), shape, n_pos=context.n_pos)
        except RuntimeError as error:
            return str(error)
        return _differing_signal(probe, model, shape) or _differing_bytes(probe, layers)


def _differing_signal(probe: _Probe, model: Any, shape: CacheShape) -> str | None:
    heads = int(library.header(model, f"{library.header(model, 'general.architecture')}.attention.head_count"))
    width = library.api().llama_model_n_embd(model)
    for layer in range(shape.layers):
        expected = {"Qcur": (1, len(IDS), heads, shape.key_length), "l_out": (1, 1, len(IDS), width)}
        for prefix, lengths in expected.items():
            found = probe.shapes.get((prefix, layer))
            if found != lengths:
                return f"tensor {prefix}-{layer} has shape {found}, expected {lengths}"
    return None


def _differing_bytes(probe: _Probe, layers: list[state.LayerState]) -> str | None:
    for index, layer in enumerate(layers):
        for name, stored in {f"cache_k_l{index}": layer.keys, f"cache_v_l{index}": layer.values}.items():
            if name not in probe.cache:
                return f"no tensor {name}"
            found = tensor.rows(probe.cache[name])[: layer.entries]
            if found.size != stored.size or (found.reshape(stored.shape) != stored).any():
                return f"the bytes of tensor {name} are not those of the state"
    return None
