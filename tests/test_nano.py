"""The nano base: corpus split, tokenizer, documents, rows, model, one small run with resume, masks, shipped files."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prompts
from pipeline.errors import UserError
from pipeline.io import read_json, sha256, size_bytes
from pipeline.metrics.measure import measure
from pipeline.nano import batches, corpus, documents, export, pretrain, probes, recipe
from pipeline.nano import tokenizer as nano_tokenizer
from pipeline.nano.evaluate import Check
from pipeline.nano.model import CausalLM, ModelConfig, causal_attention
from pipeline.tasks import facts

BASE = Path(__file__).parents[1] / "data" / "embedded" / "base"
TINY = ModelConfig(
    vocab_size=640,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rope_theta=10000.0,
    max_position_embeddings=256,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    """The real recipe with a corpus, a vocabulary and a model that take seconds; corpus and tokenizer are made."""
    root = tmp_path_factory.mktemp("nano")
    folder = root / "corpus"
    settings = recipe.load()
    for source in settings["corpus"]["sources"].values():
        for index, name in enumerate(source["files"]):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(SAMPLES[source["reader"]](index), encoding="utf-8")
    settings |= {"build": str(root / "build"), "base": str(root / "base"), "model": {**TINY.__dict__}}
    settings["tokenizer"]["vocabulary_weight"] = 1
    settings["corpus"]["held_out_percent"] = 30
    pretraining = settings["pretrain"]
    phase = {**pretraining["phases"][1], "until": 10**6, "rows": 2, "length": 64, "gap_length": 128}
    heads = {"previous": [0, 0], "name": [1, 1], "field": [1, 2], "copy": [1, 0], "recall": [2, 0]}
    pretraining["guide"] |= {kind: [head] for kind, head in heads.items()}
    settings["pretrain"] = pretraining | {
        "tokens": 512,
        "warmup_steps": 1,
        "watched_rows": 16,
        "decay_from": 256,
        "phases": [phase],
    }
    corpus.main(settings, folder)
    nano_tokenizer.main(settings)
    return settings


SAMPLES = {
    "dialogues": lambda index: "\n".join(
        json.dumps({"instruction": f"咳嗽{i}天了怎么办？", "output": f"多喝温水{i}次，注意休息{index}。"})
        for i in range(40)
    ),
    "classics": lambda index: "\n".join(f"第{i}条。太阳之为病，脉浮，头项强痛而恶寒。" for i in range(200)),
    "book": lambda index: "\n\n".join(f"Call me Ishmael {i}.\nSome years ago, never mind." for i in range(200)),
}


def test_corpus_splits_every_source_without_overlap(small):
    train, test = (corpus.load(small, split) for split in ("train", "held_out"))
    for name in small["corpus"]["sources"]:
        assert train[name]
        assert not {d["text"] for d in train[name]} & {d["text"] for d in test[name]}
    assert any(test.values())


def test_corpus_names_every_missing_file(small, tmp_path):
    files = sum(len(source["files"]) for source in small["corpus"]["sources"].values())
    with pytest.raises(UserError) as error:
        corpus.main(small, tmp_path)
    assert len(error.value.problems) == files


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "二", "input": "", "output": "三", "history": [["零", "一"]]},
        {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate("零一二三")]},
        {"conversation": [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate("零一二三")]},
    ],
)
def test_every_schema_gives_the_same_turns(record):
    assert corpus.turns_of(record) == [("user", "零"), ("assistant", "一"), ("user", "二"), ("assistant", "三")]


def test_corpus_text_holds_no_control_token():
    assert "<|im_end|>" not in corpus.clean("a<|im_end|>b")


def test_tokenizer_has_qwen3s_added_tokens_last_and_round_trips(small):
    tokenizer = prompts.load_tokenizer(nano_tokenizer.directory(small))
    added = [*nano_tokenizer.SPECIAL_TOKENS, *nano_tokenizer.PLAIN_ADDED_TOKENS]
    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer")
    assert tokenizer.convert_tokens_to_ids(added) == list(range(TINY.vocab_size - len(added), TINY.vocab_size))
    text = "它's 30克，ＡＢ\u200b 🙂\n\n<think>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


CHATS = [
    [{"role": "user", "content": "咳嗽"}],
    [{"role": role, "content": role} for role in ("system", "user", "assistant")],
    [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, ["一", "二", "三", "四"], strict=True)],
]


@pytest.mark.parametrize("messages", CHATS)
def test_shipped_template_with_thinking_off_is_the_pipelines(small, messages):
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(nano_tokenizer.directory(small))
    asks = messages[-1]["role"] == "user"
    ours = own.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks, enable_thinking=False)
    own.chat_template = prompts.template()
    assert ours == own.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)


@pytest.mark.parametrize("messages", CHATS[1:])
def test_chat_documents_are_rendered_as_the_pipeline_does(small, messages):
    tokenizer = prompts.load_tokenizer(nano_tokenizer.directory(small))
    text = "".join(piece.text for piece in documents.chat_pieces(messages))
    assert text == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("kind", documents.WRITERS)
@pytest.mark.parametrize("chat", [False, True])
def test_training_documents_use_no_name_or_value_of_the_test(kind, chat):
    material = documents.Material(lambda n: "字" * n, ["甲乙", "丙丁", "戊", "己庚"], varied=0.5)
    pieces = documents.WRITERS[kind](Random(1), 600, chat, material)
    answers = [piece.text for piece in pieces if piece.kind == "answer"]
    assert answers
    assert not any(map(facts.held_out, answers))
    stated = "".join(piece.text for piece in pieces if piece.kind == "fact")
    assert all(answer in stated for answer in answers)


def test_repeats_are_told_by_the_past():
    ids, kinds = documents.repeats(Random(3), 400, lambda n: list(range(n)), top=500, newline=1)
    pairs = list(pairwise(ids))
    repeated = [i for i, kind in enumerate(kinds) if kind == "repeat"]
    assert len(repeated) > 50
    assert all(pairs[i - 1] in pairs[: i - 1] for i in repeated)


@pytest.mark.parametrize("kind", ["repeat", "pairs", "records", "needles"])
def test_links_end_at_what_they_tell(small, kind):
    row = run_of(small).writer.row(Random(4), 400, {kind: 1.0})
    links = batches.links(row)
    told = [(at, to) for of in ("copy", "recall") for at, to in enumerate(links[of]) if to >= 0]
    assert told
    assert all(to <= at and row[to].id == row[at + 1].id for at, to in told)
    for role in ("name", "field"):
        assert all(to < 0 or row[to].role == role for to in links[role])
    assert kind == "repeat" or sum(to >= 0 for to in links["name"]) > 4


def run_of(small, **changes) -> pretrain.Run:
    """Return a run of the small recipe, not compiled."""
    return pretrain.Run({**small, "pretrain": {**small["pretrain"], **changes}})


def test_rows_repeat_and_positions_rise_within_the_gap_length(small):
    first, second = (run_of(small).writer.batch(5, small["pretrain"]["phases"][0] | {"gaps": 1.0}) for _ in range(2))
    assert torch.equal(first.ids, second.ids)
    assert first.ids.shape == first.targets.shape == first.weights.shape == (2, 64)
    assert torch.equal(first.ids[:, 1:], first.targets[:, :-1])
    assert (first.positions.diff() >= 1).all()
    assert first.positions.max() < 128


@pytest.mark.parametrize("start", ["endoftext", "chat", "bare"])
def test_rows_begin_with_the_token_the_recipe_asks_for(small, start):
    writer = run_of(small, first_token={start: 1.0}).writer
    begin = {"endoftext": writer.end_of_text, "chat": writer.tokenizer.token_to_id("<|im_start|>")}
    for kind in ("pairs", "records", "needles", "natural"):
        token = writer.row(Random(2), 64, {kind: 1.0})[0].id
        assert token == begin.get(start, token)
        assert (token in begin.values()) == (start != "bare")


def test_resumed_run_equals_one_that_did_not_stop(small):
    def steps(run, count):
        for _ in range(count):
            run.step(run.model, run.writer.batch(run.progress.step, run.phase()))
        return run

    through = steps(run_of(small), 4)
    steps(run_of(small), 2).save("half")
    resumed = run_of(small)
    resumed.resume("half")
    steps(resumed, 2)
    assert resumed.progress.tokens == through.progress.tokens == 512
    assert resumed.rate() == small["pretrain"]["floor"]
    for one, other in zip(through.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_export_is_what_transformers_reads(small):
    from transformers import AutoModelForCausalLM

    run_of(small).save("last")
    export.main(small)
    ours, theirs = export.load(Path(small["base"])), AutoModelForCausalLM.from_pretrained(small["base"])
    ids = torch.arange(40)[None]
    with torch.no_grad():
        logits = ours.logits(ours.hidden(ids, torch.arange(40)[None])[0])
        assert torch.allclose(logits, theirs.float()(ids).logits, atol=1e-4)


@pytest.mark.parametrize("length", [5, 256, 300])
def test_blockwise_attention_is_causal_attention(length):
    q, k, v = torch.randn(3, 2, 4, length, 16, generator=torch.Generator().manual_seed(0))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(causal_attention(q, k, v), expected, atol=1e-5)


def test_explicit_causal_mask_and_first_token_mass():
    torch.manual_seed(0)
    model = CausalLM(TINY)
    ids, positions = torch.randint(0, 600, (1, 20)), torch.arange(20)[None]
    causal = torch.ones(20, 20, dtype=torch.bool).tril()
    plain, watched = model.hidden(ids, positions, watch=(torch.tensor([0]), torch.zeros(1, 1, 1, dtype=torch.long)))
    masked, _ = model.hidden(ids, positions, causal[None, None])
    assert torch.allclose(plain, masked, atol=1e-5)
    assert torch.allclose(watched, torch.zeros(3, 1, 4, 1, 1), atol=1e-6)  # log of 1: the first token sees itself alone


@given(st.integers(1, 60), st.integers(0, 4), st.integers(1, 20))
def test_window_keeps_sinks_and_the_newest_within_budget(length, sinks, recent):
    mask = probes.window(length, sinks, sinks + recent)
    assert torch.equal(mask.sum(1), torch.arange(1, length + 1).clamp(max=sinks + recent))
    assert mask.diagonal().all()
    assert mask[:, :sinks].tril().sum() == torch.ones(length, min(sinks, length)).tril().sum()


def test_kept_after_prefill_touches_only_the_rows_of_question_and_answer():
    mask = probes.kept_after_prefill(50, question=40, span=(10, 15), sinks=4, budget=20)
    causal = torch.ones(50, 50, dtype=torch.bool).tril()
    assert torch.equal(mask[:40], causal[:40])
    assert mask[40].nonzero().flatten().tolist() == [*range(4), *range(10, 15), *range(29, 41)]


def test_losses_under_a_causal_mask_are_the_plain_losses():
    torch.manual_seed(0)
    model = CausalLM(TINY)
    ids = list(range(30))
    assert torch.allclose(probes.losses(model, ids), probes.losses(model, ids, probes.window(30, 0, 30)), atol=1e-5)


def test_divergence_of_a_model_from_itself_is_zero_and_from_another_is_not():
    torch.manual_seed(0)
    one, other = CausalLM(TINY), CausalLM(TINY)
    rows = [list(range(20)), list(range(20, 40))]
    assert probes.divergence(one, one, rows)["value"] == pytest.approx(0, abs=1e-7)
    assert probes.divergence(one, other, rows)["value"] > 1e-3


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [(None, None, None), (0.5, None, True), (0.51, None, False), (None, 0.5, True), (0.1, 0.4, False)],
)
def test_a_check_holds_within_its_bounds(low, high, holds):
    assert replace(Check("x", measure(0.5)), low=low, high=high).holds is holds


measured = pytest.mark.skipif(not (BASE / "bounds.json").is_file(), reason="the shipped base was not measured yet")


def test_shipped_base_is_small_and_of_the_recipes_shape():
    assert size_bytes(BASE / "model.safetensors") <= 16e6
    config = read_json(BASE / "config.json")
    sizes = recipe.load()["model"]
    assert {name: config[name] for name in sizes if name in config} == {k: sizes[k] for k in sizes if k in config}


def test_card_tells_weights_and_every_source():
    card = (BASE / "README.md").read_text(encoding="utf-8")
    assert sha256(BASE / "model.safetensors") in card
    for source in recipe.load()["corpus"]["sources"].values():
        assert source["origin"] in card
        assert source["licence"] in card


@measured
def test_bounds_are_of_the_shipped_weights_and_in_the_card():
    bounds = read_json(BASE / "bounds.json")
    assert bounds["weights_sha256"] == sha256(BASE / "model.safetensors")
    assert all(check["name"] in (BASE / "README.md").read_text(encoding="utf-8") for check in bounds["checks"])
