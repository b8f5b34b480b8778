"""Streams whose entries are computed again: nothing is lost or half there, and what follows is a shorter text's."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import recipes
from pipeline.chatting import tree
from pipeline.engines.cache import Room
from pipeline.engines.opening import opened
from pipeline.engines.prompt import prefilled
from pipeline.engines.rereading import TextStream
from pipeline.engines.snapshot import Checkpoint
from pipeline.engines.stream import Aside
from pipeline.engines.summary.stream import SummaryStream
from pipeline.engines.summary.writer import Extractive, Writer
from pipeline.engines.torch.kv import TorchKvEngine
from pipeline.errors import UserError
from pipeline.kv import recipe
from pipeline.kv.policy import FULL, Policy
from tests.kv_models import LAYERS, MODELS, gpt_neox, qwen3, random_ids, words
from tests.kv_runs import run, small
from tests.summary_writers import Told

REWRITING = [
    name for name in recipes.names("kv") if (source := recipe.read(name)).rewrites and not source.types.quantised
]
SHIFTING = [name for name in REWRITING if (part := recipe.read(name).summary) and part.reinsert == "shift"]
FRESH = [name for name in REWRITING if name not in SHIFTING]
SUMMARISING = [name for name in REWRITING if recipe.read(name).summary]
TEXTS = ([40, 41, 42], [50], [60, 61, 62, 63, 64])


def small_summary(name: str, slack: int = 3, **changes) -> Policy:
    """Return a recipe's policy at a small budget; a summary is due at every cut but for other ``changes``."""
    policy = small(name, slack)
    return replace(policy, summary=replace(policy.summary, **{"after": 1} | changes)) if policy.summary else policy


def stream_of(model, policy: Policy, tokens: int, writer: Writer | None = None) -> TextStream:
    """Return an empty stream, whose summaries a known writer makes if one is given."""
    engine = TorchKvEngine(model)
    cache = engine.cache(Room(tuple(policy.most_entries(LAYERS, 0, tokens))))
    if writer is None:
        return opened(engine, cache, policy, words())
    return SummaryStream(engine, cache, policy, writer, Extractive(words()))


def fresh(model, ids: list[int]) -> np.ndarray:
    """Return the logits after a text that a new context has read."""
    engine = TorchKvEngine(model)
    return opened(engine, engine.cache(Room((len(ids),) * LAYERS)), FULL).feed(ids)[-1]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", FRESH)
def test_what_is_computed_again_is_a_fresh_context(model, name):
    model, policy, ids = MODELS[model](), small_summary(name), random_ids(90)
    stream = stream_of(model, policy, 90, Told(TEXTS) if policy.summary else None)
    lives = [0]
    for token in ids:
        stream.feed([token])
        lives.append(stream.lives[0])
        assert np.abs(stream.snapshot().logits - fresh(model, stream.entry_ids)).max() < 1e-4
    assert sum(np.diff(lives) < 0) > 5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", [name for name in FRESH if recipe.read(name).decode.score])
def test_what_is_chosen_next_is_chosen_of_the_text_as_it_stands(model, name):
    model, policy, ids = MODELS[model](), small_summary(name), random_ids(90)
    stream, cuts = stream_of(model, policy, 90, Told(TEXTS) if policy.summary else None), 0
    for token in ids:
        text, written = [*stream.entry_ids, token], len(stream.origins()[0][0][stream.origins()[0][0] < 0])
        stream.feed([token])
        if len(stream.entry_ids) < len(text):
            cuts += 1
            rule = policy.beside(written) if policy.summary else policy
            plain = stream_of(model, replace(rule, summary=None, reprefill=False), 90)
            plain.feed(text)
            sinks = policy.decode.segments.sinks
            chosen = [text[at] for at in plain.origins()[0][0].tolist()][sinks + written :]
            assert cuts == 1 or stream.entry_ids[-len(chosen) :] == chosen
            assert [layer.origins.tolist() for layer in stream.snapshot().queries] == [
                stream.origins()[0][0].tolist()[-len(layer.origins) :] for layer in stream.snapshot().queries
            ]
    assert cuts > 5


@pytest.mark.parametrize("changes", [{"tokens": 0}, {"tokens": 0, "mode": "none"}])
def test_without_room_for_a_summary_it_is_streaming_llm_to_the_bit(changes):
    policy, ids = small_summary("streaming_summary", **changes), random_ids(100)
    found = run(qwen3(), policy, ids, 100, step=1)
    expected = run(qwen3(), small("streaming_llm", 3), ids, 100, step=1)
    assert found.logits.tobytes() == expected.logits.tobytes()
    assert found.origins() == expected.origins()
    assert found.stream.account.made == 0


def test_an_empty_room_leaves_the_newest_entries_alone_as_many_as_a_summary_would():
    budget, most = 24, 6
    policy = small_summary("streaming_summary_none")
    assert (policy.budget, policy.summary.tokens) == (budget, most)
    stream = stream_of(qwen3(), policy, 100)
    lives = []
    for token in random_ids(100):
        stream.feed([token])
        lives.append(stream.lives[0])
    assert lives[:27] == list(range(1, 28))
    assert lives[27:] == [budget - most + (at % 4) for at in range(73)]
    with_text = stream_of(qwen3(), small_summary("streaming_summary"), 100, Told([TEXTS[0]]))
    with_text.feed(random_ids(100))
    assert with_text.lives[0] - 3 == stream.lives[0]
    newest = [origin for origin in with_text.origins()[0][0].tolist() if origin >= 4]
    assert newest == [origin for origin in stream.origins()[0][0].tolist() if origin >= 4]


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(SUMMARISING),
    slack=st.integers(0, 9),
    after=st.integers(1, 40),
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    step=st.integers(3, 20),
)
def test_every_token_is_at_one_place_and_the_summary_whole(name, slack, after, lengths, step):
    policy, ids = small_summary(name, slack, after=after), random_ids(100)
    texts = [list(range(30, 30 + length)) for length in lengths]
    stream = stream_of(gpt_neox(), policy, len(ids), Told(texts))
    sinks, most = policy.decode.segments.sinks, policy.summary.tokens
    head = None
    for at in range(0, len(ids), step):
        stream.feed(ids[at : at + step])
        origins = stream.origins()[0][0].tolist()
        assert all(layer.tolist() == [origins] * len(layer) for layer in stream.origins())
        written = [entry for origin, entry in zip(origins, stream.entry_ids, strict=True) if origin < 0]
        alive = [origin for origin in origins if origin >= 0]
        covered = [number for span in stream.ledger.covered for number in span]
        assert sorted(alive + covered + list(stream.ledger.waiting.origins)) == list(range(stream.seen))
        assert [ids[origin] for origin in alive] == [
            entry for origin, entry in zip(origins, stream.entry_ids, strict=True) if origin >= 0
        ]
        assert [ids[origin] for origin in stream.ledger.waiting.origins] == list(stream.ledger.waiting.ids)
        assert tuple(written) == stream.summary
        assert origins[sinks : sinks + len(written)] == list(range(-len(written), 0))
        assert len(written) <= most
        assert max(stream.peaks) <= policy.budget + policy.slack + 1
        state = stream.snapshot()
        if head is None and state.lives[0] >= sinks:
            head = state.part(0, sinks)
        if head:
            assert all(
                torch.equal(one.stored, other.stored) and torch.equal(one.values, other.values)
                for one, other in zip(head.layers, state.part(0, sinks).layers, strict=True)
            )


@pytest.mark.parametrize("name", SHIFTING)
def test_a_shift_moves_what_it_finds_and_computes_the_summary_alone(name):
    model, policy, ids = qwen3(), small_summary(name), random_ids(60)
    engine = TorchKvEngine(model)
    without = replace(policy, summary=replace(policy.summary, mode="none"))
    streams = [stream_of(model, without, 60), stream_of(model, policy, 60, Told([TEXTS[2]]))]
    for stream in streams:
        stream.feed(ids[:28])  # up to the first cut
    before, after = (stream.snapshot() for stream in streams)
    first, length = 4, len(TEXTS[2])
    assert after.lives[0] == before.lives[0] + length
    rest = before.part(first, before.lives[0])
    moved = after.part(first + length, after.lives[0])
    assert after.upcoming == before.upcoming + length
    for old, new in zip(rest.layers, moved.layers, strict=True):
        by = torch.full(old.keys().shape[:2], length)
        assert torch.equal(old.values, new.values)
        assert (engine.rope.rotate(old.keys(), by) - new.keys()).abs().max() < 1e-4
    cache = engine.cache(Room((20,) * LAYERS))
    opened(engine, cache, FULL).feed([*ids[:first], *TEXTS[2]])
    for one, other in zip(cache.read(), after.part(0, first + length).layers, strict=True):
        assert (one.keys() - other.keys()).abs().max() < 1e-4
    assert streams[1].entry_ids == [*ids[:first], *TEXTS[2], *[ids[at] for at in rest.origins[0][0].tolist()]]
    assert after.positions[0][0].tolist() == list(range(after.lives[0]))


@pytest.mark.parametrize("name", SHIFTING)
def test_entries_stand_where_they_should_however_often_they_have_moved(name):
    """In the first layer a key is its token's alone, turned to its position; so is a value."""
    model, policy, ids = gpt_neox(), small_summary(name), random_ids(120)
    stream, engine = stream_of(model, policy, 120, Told(TEXTS)), TorchKvEngine(model)
    for at in range(0, 120, 4):
        stream.feed(ids[at : at + 4])
        cache = engine.cache(Room((60,) * LAYERS))
        opened(engine, cache, FULL).feed(stream.entry_ids)
        first, expected = stream.snapshot().layers[0], cache.read()[0]
        assert (first.keys() - expected.keys()).abs().max() < 1e-4
        assert (first.values - expected.values).abs().max() < 1e-4
    assert stream.account.made > 10


def test_a_writer_that_fails_is_asked_once_more_then_sentences_stand_in():
    policy, ids = small_summary("streaming_summary"), random_ids(200)
    good, long = TEXTS[0], list(range(30, 30 + policy.summary.tokens + 1))
    told = Told([good, [], long, good, long, good])
    stream, seen = stream_of(qwen3(), policy, 200, told), []
    for token in ids:
        asked = len(told.asked)
        stream.feed([token])
        if len(told.asked) > asked:
            account = stream.account
            seen.append((account.made, account.failures, account.fallbacks, len(stream.ledger.waiting) > 0))
            assert account.retries == len(seen) // 3, "the third time and the sixth"
            if len(seen) == 2:
                assert stream.summary == tuple(good), "the old one stays"
            if len(seen) == 3:
                assert 0 < len(stream.summary) <= policy.summary.tokens
                assert set(stream.summary) <= {*good, *told.asked[2][1].ids}, "word for word"
                fallback = stream.summary
    assert seen[:6] == [
        (1, 0, 0, False),
        (1, 1, 0, True),
        (2, 2, 1, False),
        (3, 2, 1, False),
        (3, 3, 1, True),
        (4, 3, 1, False),
    ]
    first, second = told.asked[1][1], told.asked[2][1]
    assert second.ids[: len(first)] == first.ids
    assert told.asked[3][0].ids == fallback


def test_summaries_are_due_more_rarely_as_the_text_grows():
    policy, told = small_summary("streaming_summary", slack=0, first=10, after=100), Told([TEXTS[0]])
    stream, due = stream_of(qwen3(), policy, 400, told), []
    for token in random_ids(400):
        stream.feed([token])
        due += [len(told.asked[-1][1])] if len(told.asked) > len(due) else []
    assert due == [10, 40, 100, 100, 100]


def test_what_will_be_taken_back_is_not_summarised():
    policy, told, ids = small_summary("streaming_summary"), Told([TEXTS[0]]), random_ids(90)
    stream, straight = (stream_of(qwen3(), policy, 150, one) for one in (told, Told([TEXTS[0]])))
    stream.feed(ids[:20])
    for at in range(20, 90, 10):
        point = stream.checkpoint()
        stream.tentative = True
        stream.feed(random_ids(30))
        assert len(told.asked) == stream.account.made
        stream.resume(point)
        stream.tentative = False
        stream.feed(ids[at : at + 10])
    straight.feed(ids)
    assert stream.account.made == len(told.asked) > 5
    assert stream.entry_ids == straight.entry_ids


def test_what_summaries_cost_is_counted():
    policy, ids = small_summary("streaming_summary", after=20), random_ids(150)
    plain = stream_of(qwen3(), small("streaming_llm", 3), 150)
    stream = stream_of(qwen3(), policy, 150)
    for one in (plain, stream):
        one.feed(ids)
    account = stream.account
    assert plain.account is None
    assert account.made + account.failures > 3
    assert account.computed > 0 < account.writing
    assert stream.aside.tokens > account.computed
    assert stream.aside.attended > stream.aside.tokens
    assert plain.aside == Aside()
    assert plain.seen == stream.seen == 150
    assert stream.attended < plain.attended, "some of the room was empty"
    assert account.kind == "f16"  # the default stands for what the engine stores
    assert account.kv_bytes > 0


@pytest.mark.parametrize("name", REWRITING)
@pytest.mark.parametrize("fed", [10, 26, 45])
def test_a_checkpoint_holds_all_there_is(name, fed):
    policy, ids = small_summary(name, after=9), random_ids(90)
    streams = [stream_of(qwen3(), policy, 90, Told([TEXTS[0]]) if policy.summary else None) for _ in range(2)]
    streams[0].feed(ids[:fed])
    point = streams[0].checkpoint()
    expected = streams[0].feed(ids[fed:], every=True)
    again = Checkpoint(point.snapshot, tree.built(json.loads(json.dumps(tree.flat(point.beside, {}))), {}))
    for stream, start in zip(streams, (point, again), strict=True):
        stream.resume(start)
        assert stream.seen == fed
        assert np.abs(stream.feed(ids[fed:], every=True) - expected).max() < 1e-5
        assert stream.entry_ids == streams[0].entry_ids
        if policy.summary:
            assert stream.ledger == streams[0].ledger
            assert stream.summary == streams[0].summary
            assert stream.account.made == streams[0].account.made > 0


@pytest.mark.parametrize("name", REWRITING)
def test_tokens_can_be_taken_back_up_to_the_last_cut(name):
    policy, ids = small_summary(name), random_ids(60)
    stream = stream_of(qwen3(), policy, 60, Told(TEXTS) if policy.summary else None)
    stream.feed(ids[:40])
    while stream.room < 3:
        stream.feed(ids[stream.seen : stream.seen + 1])
    before, mark = stream.entry_ids, stream.mark()
    stream.feed([70, 71])
    assert stream.entry_ids == [*before, 70, 71]
    stream.rewind(mark)
    assert stream.entry_ids == before
    assert stream.lives[0] == len(before)


def test_a_prompt_without_its_tokens_is_refused():
    prompt = prefilled(TorchKvEngine(qwen3()), random_ids(9), FULL)
    with pytest.raises(ValueError, match="must be fed its prompt"):
        stream_of(qwen3(), small("snapkv_lite_cpu_reprefill", 3), 40).take(prompt)


def test_a_policy_with_a_summary_needs_a_tokenizer():
    engine = TorchKvEngine(qwen3())
    with pytest.raises(UserError, match="needs the model's tokenizer"):
        opened(engine, engine.cache(Room((8,) * LAYERS)), small("streaming_summary", 0))
