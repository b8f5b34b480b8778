"""bench on the tiny model: rows beside full KV, bytes by the accounting rule, and plans that do not fit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from pipeline import bench, io, prompts
from pipeline.benching import plan
from pipeline.engines.llama import library
from pipeline.engines.llama.context import Context
from pipeline.errors import UserError
from pipeline.kv import policy as kv
from pipeline.kv.precision import CacheShape
from pipeline.reporting.records import Bench
from pipeline.tasks import text

from .conftest import ROOT

pytest_plugins = ["tests.gguf_models"]

SETTINGS = {
    "encodings": ("Q4_0",),
    "depths": (48, 96),
    "budgets": (24, 40),
    "slack": 8,
    "decode_tokens": 8,
    "warmup_tokens": 2,
    "repetitions": 2,
}
SHAPE = CacheShape(layers=2, kv_heads=2, key_length=64, value_length=64)


@pytest.fixture(scope="module")
def inputs(tiny_model_dir, tiny_gguf, tmp_path_factory):
    """A directory that holds what bench reads."""
    directory = tmp_path_factory.mktemp("bench")
    shutil.copytree(tiny_model_dir, directory / "artifacts/merged")
    (directory / "artifacts/quantized/Q4_0").mkdir(parents=True)
    shutil.copy(tiny_gguf("Q4_0"), directory / "artifacts/quantized/Q4_0")
    (directory / "recipes").symlink_to(ROOT / "recipes")
    io.write_jsonl(directory / "data/chat/test.jsonl", chats(40))
    return directory


@pytest.fixture
def workplace(inputs, tmp_path, monkeypatch):
    """A copy of the inputs as the current directory."""
    directory = shutil.copytree(inputs, tmp_path / "work", symlinks=True, ignore=shutil.ignore_patterns("eval"))
    monkeypatch.chdir(directory)
    monkeypatch.setattr(plan, "SCORED_TOKENS", 60)
    return directory


@pytest.fixture(scope="module")
def result(inputs, params) -> dict:
    """The JSON of one benchmark, shared: read it, do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(inputs)
        patch.setattr(plan, "SCORED_TOKENS", 60)
        bench.main(with_bench(params), "Q4_0")
        return io.read_json("eval/bench/Q4_0.json") | {"timings": io.read_json("eval/timings/bench@Q4_0.json")}


def chats(count: int) -> list[dict]:
    return [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": f"我咳嗽{i}天了，还流清涕，应该怎么办？"},
                {"role": "assistant", "content": f"多喝温水，注意休息，每天睡够{i % 9}小时。"},
            ],
        }
        for i in range(count)
    ]


def with_bench(params, **changes):
    return params.model_copy(update={"bench": params.bench.model_copy(update=SETTINGS | changes)})


def test_every_policy_depth_and_budget_has_one_row(result, params):
    budgets = {"recent_only": [24, 40], "streaming_llm": [24, 40]}
    expected = [
        (policy, depth, budget)
        for depth in (48, 96)
        for policy in params.bench.policies
        for budget in budgets.get(policy, [None])
    ]
    assert [(row["policy"], row["depth"], row["budget"]) for row in result["rows"]] == expected
    assert result["machine"]["threads"] == params.runtime.threads
    assert result["machine"]["flags"].startswith("CPU")
    assert result["settings"]["scored_tokens"] == 60
    assert result["timings"]["seconds"] > 0
    Bench.model_validate(result)


def test_bytes_and_entries_obey_the_accounting_rule(result):
    for row in result["rows"]:
        recipe = kv.read(row["policy"])
        final, peak = row["entries"]["value"], row["entries_peak"]["value"]
        assert row["kv_bytes_final"]["value"] == recipe.types.kv_bytes(SHAPE, final)
        assert row["kv_bytes_peak"]["value"] == recipe.types.kv_bytes(SHAPE, peak)
        if row["budget"] is None:
            assert final == peak == row["depth"] + 30 - 1  # the last token is predicted, never fed
        else:
            assert row["budget"] <= final <= row["budget"] + 8
            assert peak == row["budget"] + 9


def test_quality_is_told_beside_full_kv(result):
    rows = {(row["policy"], row["depth"], row["budget"]): row["quality"] for row in result["rows"]}
    for depth in (48, 96):
        full = rows["full", depth, None]
        assert full["kld"]["value"] == 0
        assert full["same_top"]["value"] == 1
        assert 0 < rows["kv_q8_0", depth, None]["kld"]["value"] < rows["kv_q4_0", depth, None]["kld"]["value"]
        small, large = (rows["recent_only", depth, budget]["kld"]["value"] for budget in (24, 40))
        assert small > large > rows["kv_q4_0", depth, None]["kld"]["value"]
        for quality in rows.values():
            assert quality["perplexity"]["value"] > 1
            assert 0 <= quality["top1"]["value"] <= 1


def test_speed_is_the_faster_setting_of_flash_attention(result):
    for row in result["rows"]:
        timing = row["timing"]
        by_flash = {name: record["value"] for name, record in timing["tpot_ms_by_flash_attention"].items()}
        assert set(by_flash) == ({"on"} if row["policy"].startswith("kv_q") else {"off", "on"})
        assert timing["tpot_ms_median"]["value"] == min(by_flash.values()) == by_flash[timing["flash_attention"]]
        assert timing["tpot_ms_median"]["n"] == 2 * 8
        assert timing["tpot_ms_p95"]["value"] >= timing["tpot_ms_median"]["value"]
        assert timing["ttft_s"]["n"] == 2
        if row["policy"] == "full":
            assert timing["ratio_to_full"]["value"] == 1


def test_all_but_the_timings_repeats_bit_for_bit(result, workplace, params):
    bench.main(with_bench(params), "Q4_0")
    again = io.read_json("eval/bench/Q4_0.json")
    for one, other in zip(result["rows"], again["rows"], strict=True):
        assert one | {"timing": None} == other | {"timing": None}
    assert {key: again[key] for key in again if key != "rows"} == {key: result[key] for key in again if key != "rows"}


def test_perplexity_and_accuracy_are_those_of_the_true_continuation(result, tokenizer, tiny_gguf):
    messages = [chat["messages"] for chat in chats(40)]
    documents = text.documents(tokenizer, messages, 96 + 30, 2)
    losses, hits = [], []
    with library.loaded(tiny_gguf("Q4_0")) as model, Context(model, n_ctx=126, threads=1) as context:
        for ids in documents:
            context.clear()
            scores = context.decode(ids, range(126), wanted=[True] * 126)[95:-1].astype(np.float64)
            scores -= scores.max(axis=1, keepdims=True)
            hits += (scores.argmax(axis=1) == ids[96:]).tolist()
            picked = scores[np.arange(30), ids[96:]]
            losses += (np.log(np.exp(scores).sum(axis=1)) - picked).tolist()
    row = next(row for row in result["rows"] if row["policy"] == "full" and row["depth"] == 96)
    assert row["quality"]["perplexity"]["value"] == pytest.approx(np.exp(np.mean(losses)), rel=5e-3)
    assert row["quality"]["top1"]["value"] == pytest.approx(np.mean(hits), abs=0.02)


def test_full_kv_leads_wherever_it_is_listed(workplace, params):
    bench.main(with_bench(params, policies=("streaming_llm", "full"), depths=(48,), budgets=(24,)), "Q4_0")
    rows = io.read_json("eval/bench/Q4_0.json")["rows"]
    assert [row["policy"] for row in rows] == ["full", "streaming_llm"]


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"budgets": (4,)}, ["bench.budgets: streaming_llm: 4 entries, but its 4 sinks"]),
        ({"depths": (48, 4000)}, ["bench.depths: 4000 and 30 tokens", "at most 2018"]),
        ({"depths": (2000,), "repetitions": 9}, ["the test dialogues have", "9 are needed"]),
        ({"policies": ("kv_q8_0", "recent_only")}, ["full KV is missing"]),
        ({"budgets": (4,), "depths": (4000,)}, ["4 sinks", "bench.depths: 4000", "the test dialogues have"]),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_any_model_is_loaded(
    workplace, params, changes, messages, monkeypatch
):
    load = library.load_model

    def header_alone(path, *, vocab_only=False):
        assert vocab_only
        return load(path, vocab_only=True)

    monkeypatch.setattr(library, "load_model", header_alone)
    with pytest.raises(UserError) as error:
        bench.main(with_bench(params, **changes), "Q4_0")
    assert all(message in str(error.value) for message in messages)
    assert not (workplace / "eval").exists()


def test_a_cache_type_that_does_not_divide_the_head_is_refused(workplace, params, monkeypatch):
    narrow = CacheShape(layers=2, kv_heads=2, key_length=80, value_length=80)
    monkeypatch.setattr(library, "cache_shape", lambda _: narrow)
    with pytest.raises(UserError, match=r"kv_q4_0: q4_0 holds 32 values a block.* length 80; take it out"):
        bench.main(with_bench(params), "Q4_0")


@pytest.mark.parametrize("encoding", ["FP8-Dynamic", "Q8_0"])
def test_an_encoding_without_a_gguf_is_refused(workplace, params, encoding):
    with pytest.raises(UserError, match=f"'{encoding}' has no GGUF file"):
        bench.main(with_bench(params), encoding)


def test_documents_start_with_dialogues_of_their_own(tokenizer):
    messages = [chat["messages"] for chat in chats(6)]
    first, second = text.documents(tokenizer, messages, 100, 2)
    opening = prompts.prompt_ids(tokenizer, messages[0][:1])
    assert len(first) == len(second) == 100
    assert first[: len(opening)] == opening
    assert tokenizer.decode(second).startswith("<|im_start|>user\n")
    assert first != second
    whole = "".join(tokenizer.apply_chat_template(one, tokenize=False) for one in messages)
    assert whole.startswith(tokenizer.decode(first[:90]))
