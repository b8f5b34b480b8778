"""Summaries on a GGUF file: the writer's own context, quantised, touches nothing of the stream that it writes for."""

from __future__ import annotations

from dataclasses import replace
from threading import Event, Thread

import numpy as np
import pytest

from pipeline import recipes
from pipeline.engines.opening import opened
from pipeline.engines.rereading import TextStream
from pipeline.engines.stream import room
from pipeline.engines.summary.ledger import Passage
from pipeline.engines.summary.stream import SummaryStream
from pipeline.engines.summary.writer import Extractive, ModelWriter
from pipeline.kv import recipe
from pipeline.kv.policy import FULL, Policy
from pipeline.kv.precision import F16, Precision

from .llama_kv_runs import F32, random_ids, small, words
from .summary_writers import Behind, Told

pytest_plugins = ["tests.llama_kv_models"]

IDS = random_ids(110)
TEXTS = ([40, 41, 42], [50], [60, 61, 62, 63, 64])
Q4_0 = Precision("q4_0", "q4_0")
REWRITING = [name for name in recipes.names("kv") if recipe.read(name).rewrites]


def policy_of(name: str, **changes) -> Policy:
    """Return a recipe's policy at a small budget, a summary being due at every cut."""
    policy = small(name, **changes)
    return replace(policy, summary=replace(policy.summary, after=1)) if policy.summary else policy


def fed(llama, policy: Policy, writer) -> tuple[np.ndarray, SummaryStream]:
    """Return the logits after every token of a text."""
    cache = llama.cache(room(llama, policy, 0, len(IDS)))
    try:
        stream = SummaryStream(llama, cache, policy, writer, Extractive(words()))
        return np.concatenate([stream.feed([token]) for token in IDS]), stream
    finally:
        cache.close()


@pytest.mark.parametrize("name", ["streaming_summary", "streaming_summary_shift", "ssskv_lite", "ssskv_lite_q8_0"])
def test_how_a_text_was_written_does_not_change_what_is_made_of_it(llama, name):
    policy = policy_of(name)
    expected, _ = fed(llama, policy, Told(TEXTS))
    for precision, threaded in ((Q4_0, False), (F16, False), (Q4_0, True)):
        behind = Behind(ModelWriter(llama, words(), precision), Told(TEXTS), threaded)
        found, stream = fed(llama, policy, behind)
        assert found.tobytes() == expected.tobytes()
        assert stream.account.made > 3
        assert {one.kind for one in behind.found} == {precision.k}
        assert all(one.computed > 0 for one in behind.found)


def test_a_stream_goes_on_undisturbed_while_a_summary_is_written(llama):
    policy, writer = policy_of("streaming_summary"), ModelWriter(llama, words(), Q4_0)
    expected, _ = fed(llama, policy, Told(TEXTS))
    text = Passage(tuple(IDS[:60]), tuple(range(60)), (0.0,) * 60)
    written, done = [], Event()

    def write() -> None:
        while not done.is_set():
            written.append(writer.write(Passage(), text, 8))

    beside = Thread(target=write)
    beside.start()
    try:
        found, _ = fed(llama, policy, Told(TEXTS))
    finally:
        done.set()
        beside.join()
    assert found.tobytes() == expected.tobytes()
    assert len(written) > 1
    assert len(set(written)) == 1


@pytest.mark.parametrize("name", REWRITING)
def test_the_sinks_never_change_and_survivors_are_computed_afresh(llama, name):
    policy = policy_of(name)
    cache = llama.cache(room(llama, policy, 0, len(IDS)))
    stream: TextStream = opened(llama, cache, policy, words())
    if policy.summary:
        stream = SummaryStream(llama, cache, policy, Told(TEXTS), Extractive(words()))
    stream.feed(IDS[:20])
    first = stream.snapshot().part(0, 4)
    for at in range(20, len(IDS), 7):
        stream.feed(IDS[at : at + 7])
    last = stream.snapshot()
    assert stream.seen > stream.lives[0]
    for one, other in zip(first.layers, last.part(0, 4).layers, strict=True):
        assert one.stored.keys.tobytes() == other.stored.keys.tobytes()
        assert one.stored.values.tobytes() == other.stored.values.tobytes()
    if policy.precision == F16 and not (policy.summary and policy.summary.shifts):
        plain = llama.cache(room(llama, FULL, 0, len(IDS)))
        again = opened(llama, plain, FULL).feed(stream.entry_ids)[-1]
        assert np.abs(last.logits - again).max() < 0.05
        plain.close()
    cache.close()


def test_bytes_of_both_caches_are_the_accounted_ones(llama):
    policy = policy_of("ssskv_lite", precision=F32)
    cache = llama.cache(room(llama, policy, 0, len(IDS)))
    stream = opened(llama, cache, policy, words())
    for token in IDS:
        stream.feed([token])
        assert cache.kv_bytes() == F32.kv_bytes(llama.shape, stream.lives[0])
        assert stream.lives[0] <= policy.budget + policy.slack + 1
    account = stream.account
    entry = Q4_0.kv_bytes(llama.shape, 1)
    assert account.kind == "q4_0"
    assert account.kv_bytes % entry == 0
    assert account.kv_bytes <= entry * account.computed
    cache.close()


def test_a_head_that_q4_0_does_not_divide_is_written_about_in_f16(llama):
    text = Passage((60,), (0,), (0.0,))
    assert ModelWriter(llama, words(), Q4_0).write(Passage(), text, 2).kind == "q4_0"
    odd = llama.with_flash(llama.flash)
    odd.shape = replace(llama.shape, key_length=80)
    assert ModelWriter(odd, words(), Q4_0).write(Passage(), text, 2).kind == "f16"
