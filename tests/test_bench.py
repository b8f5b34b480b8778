"""bench on the tiny model: rows beside full KV, bytes by the accounting rule, work by hand, recall in its interval."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pipeline import bench, io
from pipeline.benching import plan, trial
from pipeline.benching.prompts import Prompts
from pipeline.benching.trial import Pace
from pipeline.benching.work import Work
from pipeline.engines.llama import library
from pipeline.engines.llama.context import Context
from pipeline.engines.llama.kv import LlamaKvEngine
from pipeline.kv import recipe as kv
from pipeline.kv.precision import CacheShape, Precision
from pipeline.reporting.records import Bench
from pipeline.tasks import recall, samples, text

from .bench_runs import ANSWERED, SETTINGS, chats, with_bench

pytest_plugins = ["tests.gguf_models", "tests.bench_inputs"]

LAYER = CacheShape(layers=1, kv_heads=2, key_length=64, value_length=64)
SHALLOW, DEEP = SETTINGS["depths"]
BUDGET, SLACK = SETTINGS["budgets"][0], SETTINGS["slack"]
FED = 29  # tokens of the continuation, 60 scored of two documents: the last is predicted, never fed
WEIGHTS = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512  # of a layer: queries and output, keys and values, gated MLP
ENTRY = 4 * 4 * 64  # FLOPs of four heads for an entry seen
HEAD = 2 * 256 * 512


@pytest.fixture(scope="module")
def result(bench_inputs, params) -> dict:
    """The JSON of one benchmark, shared: read it, do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bench_inputs)
        bench.main(with_bench(params), "Q4_0")
        return io.read_json("eval/bench/Q4_0.json") | {"timings": io.read_json("eval/timings/bench@Q4_0.json")}


@pytest.fixture
def rows(result) -> dict[tuple[str, int], dict]:
    """The rows by policy and depth."""
    return {(row["policy"], row["depth"]): row for row in result["rows"]}


def test_every_policy_and_depth_has_one_row(result, params):
    expected = [
        (policy, depth, BUDGET if kv.read(policy).budgeted else None)
        for depth, policy in product(SETTINGS["depths"], SETTINGS["policies"])
    ]
    assert [(row["policy"], row["depth"], row["budget"]) for row in result["rows"]] == expected
    assert result["machine"]["threads"] == params.runtime.threads
    assert result["machine"]["flags"].startswith("CPU")
    assert result["settings"]["scored_tokens"] == 60
    assert result["timings"]["seconds"] > 0
    Bench.model_validate(result)


def test_measured_bytes_obey_the_accounting_rule(rows):
    for (policy, _), row in rows.items():
        types, lives = kv.read(policy).types, row["entries_by_layer"]
        assert row["kv_bytes_final"]["value"] == sum(types.kv_bytes(LAYER, live) for live in lives)
        assert row["kv_bytes_peak"]["value"] == types.kv_bytes(LAYER, 1) * 2 * row["entries_peak"]["value"]
        assert row["entries"]["value"] == np.mean(lives)


@pytest.mark.parametrize("depth", [SHALLOW, DEEP])
def test_entries_are_what_each_policy_allows(rows, depth):
    for policy in ("full", "kv_q8_0", "kv_q4_0"):
        assert rows[policy, depth]["entries_by_layer"] == [depth + FED] * 2
    for policy in ("recent_only", "streaming_llm", "h2o"):
        assert all(BUDGET <= live <= BUDGET + SLACK for live in rows[policy, depth]["entries_by_layer"])
    for policy in ("recent_only", "streaming_llm"):
        assert rows[policy, depth]["entries_peak"]["value"] == BUDGET + SLACK + 1
    for policy in ("snapkv", "gemfilter", "fastkv"):
        assert rows[policy, depth]["entries_by_layer"] == [BUDGET + FED] * 2
    first, last = rows["pyramidkv", depth]["entries_by_layer"]
    assert first > last
    assert first + last == 2 * (BUDGET + FED)
    assert rows["snapkv", depth]["entries_peak"]["value"] == max(depth, BUDGET + FED)


def test_what_is_kept_beside_the_cache_is_counted(rows):
    for policy in set(SETTINGS["policies"]) - {"h2o", "infllm"}:  # though prefills are shared with those that vote
        assert rows[policy, DEEP]["state_bytes"]["value"] == 0, policy
    assert all(rows[policy, DEEP]["state_bytes"]["value"] > 0 for policy in ("h2o", "infllm"))


def test_entries_in_host_memory_are_counted_apart(rows):
    for (policy, depth), row in rows.items():
        last_cut = BUDGET + (depth + FED - BUDGET) // 16 * 16 if policy == "infllm" else 0
        assert row["host_bytes"]["value"] == kv.read(policy).types.kv_bytes(LAYER, last_cut) * 2, policy


def test_the_picture_shows_the_prompt_that_lives(rows):
    for row in rows.values():
        assert [len(layer) for layer in row["kept"]] == [32, 32]
        assert all(0 <= share <= 1 for layer in row["kept"] for share in layer)
    assert rows["full", DEEP]["kept"] == [[1.0] * 32] * 2
    assert rows["streaming_llm", DEEP]["kept"][0][0] == 0.4  # 4 sinks of 10 tokens
    assert rows["recent_only", DEEP]["kept"][0][0] == 0
    for layer in rows["snapkv", DEEP]["kept"]:
        assert sum(layer) == pytest.approx(BUDGET / 10, abs=0.2)
        assert layer[-3:] == [1.0] * 3  # its window of 32


def test_quality_is_told_beside_full_kv(rows):
    for depth in (SHALLOW, DEEP):
        quality = {policy: rows[policy, depth]["quality"] for policy in SETTINGS["policies"]}
        assert quality["full"]["kld"]["value"] == 0
        assert quality["full"]["same_top"]["value"] == 1
        q8_0, q4_0, recent = (quality[name]["kld"]["value"] for name in ("kv_q8_0", "kv_q4_0", "recent_only"))
        assert 0 < q8_0 < q4_0 < recent
        for one in quality.values():
            assert one["perplexity"]["value"] > 1
            assert 0 <= one["top1"]["value"] <= 1


def test_speed_is_the_faster_setting_of_flash_attention(rows):
    settings = {"full": {"off", "on"}, "kv_q8_0": {"on"}, "kv_q4_0": {"on"}}
    for (policy, _), row in rows.items():
        timing = row["timing"]
        by_flash = {name: record["value"] for name, record in timing["tpot_ms_by_flash_attention"].items()}
        assert set(by_flash) == settings.get(policy, {"off"})
        assert timing["tpot_ms_median"]["value"] == min(by_flash.values()) == by_flash[timing["flash_attention"]]
        assert timing["tpot_ms_median"]["n"] == 2 * 8
        assert timing["tpot_ms_p95"]["value"] >= timing["tpot_ms_median"]["value"]
        assert timing["ttft_s"]["n"] == 2
        assert timing["ttft_s"]["value"] == pytest.approx(
            timing["prefill_s"]["value"] + timing["compress_s"]["value"], rel=1e-3
        )
        if policy == "full":
            assert timing["ratio_to_full"]["value"] == 1


def test_recall_is_asked_with_and_without_the_question_in_sight(rows):
    cut_at_the_end = {"snapkv", "h2o", "pyramidkv", "gemfilter", "fastkv"}
    for (policy, depth), row in rows.items():
        if depth == SHALLOW:
            assert "recall" not in row
            continue
        assert list(row["recall"]) == list(recall.KINDS)
        for kind, sights in row["recall"].items():
            assert set(sights) == ({"seen", "unseen"} if policy in cut_at_the_end else {"seen"})
            for sight, share in sights.items():
                first_alone = (sight == "seen" and "unseen" in sights) or kind == "needles"  # few stand early
                asked = 1 if first_alone else 2
                assert share["n"] == asked
                assert share["value"] * asked in range(asked + 1)
                assert share["ci95"] == pytest.approx(recall.wilson(round(share["value"] * asked), asked), abs=1e-5)


def test_a_conversation_is_asked_about_under_every_policy(rows):
    for (_, depth), row in rows.items():
        assert ("dialogue_recall" in row) == (depth == DEEP)
        if depth == DEEP:
            found = row["dialogue_recall"]
            assert found["exact_match"]["n"] == found["bert_f1"]["n"] > 2  # several facts are told in each of two
            right = found["exact_match"]["value"] * found["exact_match"]["n"]
            assert right == pytest.approx(round(right), abs=1e-4)
            assert 0 < found["bert_f1"]["value"] < 1
            assert found["kv_bytes_mean"]["value"] <= rows["full", DEEP]["dialogue_recall"]["kv_bytes_mean"]["value"]
    for policy in ("recent_only", "streaming_llm", "snapkv", "fastkv"):
        held = rows[policy, DEEP]["dialogue_recall"]["kv_bytes_mean"]["value"] / Precision().kv_bytes(LAYER, 2)
        assert BUDGET / 2 < held < 2 * BUDGET


def test_lossless_decoding_is_full_kvs_own_text(result):
    assert [(row["policy"], row["budget"]) for row in result["lossless"]] == [
        ("streaming_llm", BUDGET),
        ("kv_q4_0", None),
    ]
    for row in result["lossless"]:
        assert (row["depth"], row["draft_tokens"]) == (DEEP, 3)
        assert row["identical"]
        assert row["identical_single"] == (row["shortfall"]["value"] == 0)
        assert 0 <= row["acceptance"]["value"] <= 1
        assert row["calls"]["value"] * row["tokens_per_call"]["value"] == pytest.approx(2 * 7, rel=1e-4)
        timing = {name: record["value"] for name, record in row["timing"].items()}
        assert timing["ratio_to_full"] == pytest.approx(timing["full_seconds"] / timing["seconds"], rel=1e-3)


def test_evaluates_samples_are_answered_under_full_kv_and_under_policies(result):
    given = {row["policy"]: row["answers"] for row in result["answers"]}
    assert [(row["policy"], row["budget"]) for row in result["answers"]] == [
        ("full", None),
        ("streaming_llm", 40),
        ("snapkv", 40),
        ("kv_q4_0", None),
    ]
    chosen = samples.chosen(chats(40)[: ANSWERED["dialogues"]], ANSWERED["samples"])
    assert all([one["id"] for one in answers] == [str(place) for place in chosen] for answers in given.values())
    for one in given["full"] + given["kv_q4_0"]:
        assert one["evicted"]["value"] == 0
    for one, full in zip(given["streaming_llm"], given["full"], strict=True):
        assert 40 <= one["entries"]["value"] <= 40 + SLACK
        assert 0 < one["evicted"]["value"] < full["entries"]["value"]


def test_work_is_that_of_a_count_by_hand(rows):
    def prompt(*lengths: int) -> int:
        return sum(2 * WEIGHTS * n + n * (n + 1) // 2 * ENTRY for n in lengths) + HEAD

    whole, cut = SHALLOW, BUDGET
    first, rest = BUDGET + SLACK + 1, (9, 9, 5)  # tokens up to the first cut, and between the later ones
    assert first + sum(rest) == whole
    later = sum(n * BUDGET + n * (n + 1) // 2 for n in rest) * ENTRY + 2 * WEIGHTS * sum(rest)
    expected = {
        "full": prompt(whole, whole),
        "h2o": prompt(whole, whole),
        "fastkv": prompt(whole, cut),
        "gemfilter": prompt(whole, cut, cut),  # the first layer reads all, then both read what was chosen
        "recent_only": prompt(first, first) + 2 * later,
    }
    found = {policy: rows[policy, SHALLOW]["flops"]["prefill"]["value"] for policy in expected}
    assert found == pytest.approx(expected, rel=1e-5)
    for policy, before in (("full", whole), ("snapkv", cut)):  # ten tokens, each seeing itself and those before
        token = 2 * (2 * WEIGHTS + (before + 5.5) * ENTRY) + HEAD
        assert rows[policy, SHALLOW]["flops"]["token"]["value"] == pytest.approx(token, rel=1e-5)


def test_all_but_the_timings_repeats_bit_for_bit(result, workplace, params):
    policies = ("full", "streaming_llm", "h2o", "pyramidkv", "fastkv", "kv_q4_0")  # others beside them change nothing
    bench.main(with_bench(params, policies=policies), "Q4_0")
    again = io.read_json("eval/bench/Q4_0.json")
    first = [row for row in result["rows"] if row["policy"] in policies]
    assert again["answers"] == result["answers"]
    for part, ours in (("rows", first), ("lossless", result["lossless"])):
        for one, other in zip(ours, again[part], strict=True):
            assert one | {"timing": None} == other | {"timing": None}
        del again[part]
    assert again == {key: result[key] for key in again}


def test_perplexity_and_accuracy_are_those_of_the_true_continuation(rows, tokenizer, tiny_gguf):
    messages = [chat["messages"] for chat in chats(40)]
    documents = text.documents(tokenizer, messages, DEEP + FED + 1, 2)
    losses, hits = [], []
    with library.loaded(tiny_gguf("Q4_0")) as model, Context(model, n_ctx=len(documents[0]), threads=1) as context:
        for ids in documents:
            context.clear()
            scores = context.decode(ids, range(len(ids)), wanted=[True] * len(ids))[DEEP - 1 : -1].astype(np.float64)
            scores -= scores.max(axis=1, keepdims=True)
            hits += (scores.argmax(axis=1) == ids[DEEP:]).tolist()
            picked = scores[np.arange(FED + 1), ids[DEEP:]]
            losses += (np.log(np.exp(scores).sum(axis=1)) - picked).tolist()
    quality = rows["full", DEEP]["quality"]
    assert quality["perplexity"]["value"] == pytest.approx(np.exp(np.mean(losses)), rel=5e-3)
    assert quality["top1"]["value"] == pytest.approx(np.mean(hits), abs=0.02)


def test_a_shared_prefill_gives_what_one_of_its_own_gives(workplace, params):
    bench_params = with_bench(params, policies=("full", "snapkv", "snapkv_lite_norm", "tova", "h2o")).bench
    planned = plan.plan(bench_params, bench.gguf("Q4_0"), bench.MERGED, bench.TEST, seed=1)
    document = planned.documents[SHALLOW][0]
    policies = [case.policy for case in planned.cases]
    with LlamaKvEngine(bench.gguf("Q4_0"), threads=1) as engine:
        work, pace = Work.of(engine.model), Pace(2, 8)
        shared = Prompts(engine, document.prompt, policies)
        for policy in policies:
            own = Prompts(engine, document.prompt, [policy])
            one, logits = trial.run(engine, policy, document, shared, work, pace)
            other, expected = trial.run(engine, policy, document, own, work, pace)
            assert np.array_equal(logits, expected)
            assert one.entries == other.entries
            assert one.kv_bytes == other.kv_bytes
            assert all(np.array_equal(a, b) for a, b in zip(one.kept, other.kept, strict=True))
