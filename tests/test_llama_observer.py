"""Watching llama.cpp's tensors: attention, queries and hidden states of transformers, and the self-test."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.llama import library, observer, state
from pipeline.engines.llama.context import Context
from pipeline.engines.llama.observer import Observer
from pipeline.errors import UserError
from pipeline.kv.precision import Precision

pytest_plugins = ["tests.gguf_models"]

F32 = Precision("f32", "f32")
TOKENS = 60


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(6).integers(0, 500, TOKENS).tolist()


@pytest.fixture(scope="module")
def reference(tiny_model_dir, ids):
    """Transformers' attentions [heads, queries, keys] and hidden states [tokens, width], by layer."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        output = loaded.eval()(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    return [a[0].numpy() for a in output.attentions], [h[0].numpy() for h in output.hidden_states]


@pytest.fixture
def watched(model):
    """A function that opens a context with an observer; everything is closed in the end."""
    contexts = []

    def opened(flash: bool = False, n_batch: int = 512, cells: int = 256) -> tuple[Context, Observer]:
        watcher = Observer()
        contexts.append(
            Context(
                model,
                n_ctx=cells,
                threads=1,
                n_batch=n_batch,
                precision=F32,
                flash_attention=flash,
                observer=watcher,
            )
        )
        return contexts[-1], watcher

    yield opened
    for context in contexts:
        context.close()


class Taken(dict):
    """Copies of what was taken, a list for each (signal, layer), and the takers that fill it."""

    def takers(self, *signals: str) -> dict[str, observer.Taker]:
        return {signal: lambda layer, array, signal=signal: self._keep(signal, layer, array) for signal in signals}

    def _keep(self, signal: str, layer: int, array: np.ndarray) -> None:
        assert array.dtype == np.float32
        self.setdefault((signal, layer), []).append(array.copy())

    def only(self, signal: str, layer: int) -> np.ndarray:
        (array,) = self[signal, layer]
        return array


def test_attention_rows_are_those_of_transformers(watched, ids, reference):
    context, watcher = watched()
    taken = Taken()
    context.decode(ids[:40], range(40))
    with watcher.listen(taken.takers("kq_soft_max")):
        context.decode(ids[40:], range(40, TOKENS))
    assert len(taken) == 2
    for layer, expected in enumerate(reference[0]):
        rows = taken.only("kq_soft_max", layer)
        assert rows.shape == (4, 20, 256)
        assert np.abs(rows[:, :, :TOKENS] - expected[:, 40:]).max() < 1e-4
        assert not rows[:, :, TOKENS:].any()


@pytest.mark.parametrize(("flash", "near"), [(False, 1e-4), (True, 2e-3)])  # flash attention rounds more
def test_queries_and_stored_keys_give_the_attention(model, watched, ids, reference, flash, near):
    context, watcher = watched(flash)
    taken = Taken()
    with watcher.listen(taken.takers("Qcur", "kq_soft_max")):
        context.decode(ids, range(TOKENS))
    assert ("kq_soft_max" in {signal for signal, _ in taken}) is not flash, "flash attention has no rows"
    unseen = np.triu(np.ones((TOKENS, TOKENS), bool), 1)
    for index, layer in enumerate(state.parse(context.state(), library.cache_shape(model))):
        queries, keys = taken.only("Qcur", index), layer.keys_f32().repeat(2, axis=0)
        assert queries.shape == (TOKENS, 4, 64)
        scores = np.einsum("qhd,hnd->hqn", queries, keys) / 8
        scores[:, unseen] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        assert np.abs(weights - reference[0][index]).max() < near
        if not flash:
            assert np.abs(weights - taken.only("kq_soft_max", index)[:, :, :TOKENS]).max() < 1e-5


def test_layer_outputs_are_transformers_hidden_states(watched, ids, reference):
    context, watcher = watched()
    taken = Taken()
    with watcher.listen(taken.takers("l_out")):
        context.decode(ids, range(TOKENS), wanted=np.arange(TOKENS) > 56)
    assert np.abs(taken.only("l_out", 0) - reference[1][1]).max() < 1e-4
    assert taken.only("l_out", 1).shape == (3, 256), "the last layer computes only what logits are wanted of"


def test_a_long_batch_is_taken_in_its_ubatches(watched):
    context, watcher = watched(n_batch=600, cells=768)
    taken = Taken()
    with watcher.listen(taken.takers("l_out")):
        context.decode([1] * 600, range(600))
    assert [len(part) for part in taken["l_out", 0]] == [512, 88]


def test_an_idle_observer_changes_no_bit(model, watched, ids):
    with Context(model, n_ctx=256, threads=1, precision=F32) as context:
        expected = context.decode(ids, range(TOKENS)).copy()
    context, watcher = watched()
    taken = Taken()
    with watcher.listen(taken.takers("l_out")):
        pass
    assert context.decode(ids, range(TOKENS)).tobytes() == expected.tobytes()
    assert not taken


def test_a_takers_exception_ends_the_graph_and_surfaces(watched, ids):
    calls = []

    def failing(layer: int, _: np.ndarray) -> None:
        calls.append(layer)
        raise LookupError("no such head")

    context, watcher = watched(n_batch=600, cells=768)
    with pytest.raises(LookupError, match="no such head"), watcher.listen({"Qcur": failing}):
        context.decode([1] * 600, range(600))
    assert calls == [0]
    context.clear()
    taken = Taken()
    with watcher.listen(taken.takers("Qcur")):
        context.decode(ids, range(TOKENS))
    assert len(taken) == 2


def test_an_exception_of_the_listener_passes_and_ends_listening(watched):
    _, watcher = watched()
    with pytest.raises(KeyError), watcher.listen({}):
        raise KeyError
    with watcher.listen({}):
        pass


def test_listening_is_checked(watched):
    _, watcher = watched()
    with pytest.raises(ValueError, match=r"'Kcur'.*'Qcur'"), watcher.listen(Taken().takers("Kcur")):
        pass
    with watcher.listen({}), pytest.raises(RuntimeError, match="one purpose"), watcher.listen({}):
        pass


@pytest.fixture
def untested():
    """The self-test as a new process finds it."""
    observer.selftest.cache_clear()
    yield
    observer.selftest.cache_clear()


@pytest.mark.usefixtures("untested")
def test_the_mirror_fits_this_build_and_is_checked_once(model, monkeypatch):
    observer.selftest(model)
    monkeypatch.setattr(observer, "_problem", lambda _: "asked again")
    observer.selftest(model)


@pytest.mark.usefixtures("untested")
def test_another_version_fails_the_self_test_by_both_names(model, monkeypatch):
    monkeypatch.setattr(library.metadata, "version", lambda _: "0.3.35")
    with pytest.raises(UserError, match=r"0\.3\.35 is installed, 0\.3\.36 is needed"):
        observer.selftest(model)


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize(
    ("name", "mirror", "problem"),
    [
        ("rows", lambda _: np.zeros((256, 256), np.uint8), "the bytes of tensor cache_k_l0"),
        ("cache_tensors", lambda _: iter(()), "no tensor cache_k_l0"),
        ("shape", lambda _: (1, 1, 1, 1), r"tensor Qcur-0 has shape \(1, 1, 1, 1\), expected \(1, 4, 4, 64\)"),
        ("operation_number", lambda _: -1, "tensor Qcur-0 has shape None"),
        ("cache_tensors", lambda _: 1 // 0, "a tensor cannot be read"),
    ],
)
def test_structures_that_do_not_fit_are_named_with_both_versions(model, monkeypatch, name, mirror, problem):
    monkeypatch.setattr(observer.tensor, name, mirror)
    with pytest.raises(UserError, match=rf"0\.3\.36 is installed, but .* of 0\.3\.36 .*: {problem}.*make env"):
        observer.selftest(model)
