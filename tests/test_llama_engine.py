"""The llama.cpp engine: version and start-up checks, ids and text, logits, batched generation, the cache's bytes."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from pipeline import io
from pipeline.config import Runtime
from pipeline.engines.llama import engine as llama_engine
from pipeline.engines.llama import library, selfcheck
from pipeline.engines.llama.context import Context, ContextFull
from pipeline.engines.llama.engine import LlamaEngine
from pipeline.errors import UserError
from pipeline.kv.precision import Precision

pytest_plugins = ["tests.gguf_models"]

RUNTIME = Runtime(seed=0, threads=1)
TEXT = "<|im_start|>user\n您好，我咳嗽三天了🚀<|im_end|>"


def random_ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 500, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def open_gguf(tiny_gguf):
    """A function that opens the tiny model of a file type; everything is closed in the end."""
    engines = []

    def opened(file_type: str, batch_size: int = 4) -> LlamaEngine:
        engines.append(LlamaEngine(tiny_gguf(file_type), RUNTIME, batch_size))
        return engines[-1]

    yield opened
    for one in engines:
        one.close()


@pytest.fixture(scope="module")
def reference(tiny_model_dir):
    """A function from ids to transformers' float32 logits."""
    import torch
    from transformers import AutoModelForCausalLM

    torch_model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()

    def logits(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return torch_model(torch.tensor([ids])).logits[0].numpy()

    return logits


def test_another_version_is_refused_by_both_names(monkeypatch):
    monkeypatch.setattr(library.metadata, "version", lambda _: "0.3.35")
    with pytest.raises(UserError, match=r"0\.3\.35 is installed, 0\.3\.36 is needed"):
        library.check_version()


def test_the_pin_is_the_lock():
    lock = (io.Path(__file__).parents[1] / "requirements.lock").read_text()
    assert f"{library.PACKAGE}=={library.PINNED}" in lock.splitlines()


def test_a_missing_or_broken_file_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        library.load_model(tmp_path / "none.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(UserError, match="cannot load"):
        library.load_model(tmp_path / "broken.gguf")


def test_text_becomes_the_tokenizers_ids(model, tokenizer):
    ids = library.tokenize(model, TEXT)
    assert ids == tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert len(library.tokenize(model, TEXT, parse_special=False)) > len(ids)
    assert library.tokenize(model, "") == []


def test_the_header_tells_the_caches_shape_without_the_weights(tiny_gguf):
    with library.loaded(tiny_gguf("Q4_0"), vocab_only=True) as header:
        shape = library.cache_shape(header)
        assert (shape.layers, shape.kv_heads, shape.key_length, shape.value_length) == (2, 2, 64, 64)
        assert library.context_length(header) == 2048


def test_logits_are_those_of_transformers_in_order(open_gguf, reference):
    sequences, starts = random_ids(30, 700, 5, 2), [10, 1, 4, 1]
    found = list(open_gguf("F32").logits(sequences, starts))
    for ids, start, scores in zip(sequences, starts, found, strict=True):
        expected = reference(ids)[start - 1 : -1]
        assert scores.shape == expected.shape
        assert np.abs(scores - expected).max() < 1e-4 < np.abs(expected).max()


def test_logits_do_not_depend_on_the_memory_they_may_take(open_gguf, monkeypatch):
    sequences = random_ids(40, 70)
    whole = list(open_gguf("Q8_0").logits(sequences, [1, 3]))
    monkeypatch.setattr(llama_engine, "LOGITS_BYTES", 16 * 4 * 512)
    for parts, expected in zip(open_gguf("Q8_0").logits(sequences, [1, 3]), whole, strict=True):
        assert parts.shape == expected.shape
        assert np.abs(parts - expected).max() < 0.02


@pytest.mark.parametrize("file_type", ["F32", "Q8_0"])
def test_many_prompts_at_once_get_the_answers_of_one_at_a_time(open_gguf, file_type):
    prompts = random_ids(5, 40, 1, 600, 12, 33, 7)
    alone = list(open_gguf(file_type, 1).generate(prompts, 20, stop=511))
    together = list(open_gguf(file_type, 3).generate(prompts, 20, stop=511))
    assert together == alone
    assert len({tuple(answer) for answer in alone}) == len(prompts)


def test_answers_end_with_the_stop_token(open_gguf):
    prompts = random_ids(9, 10, 11)
    free = list(open_gguf("F32").generate(prompts, 12, stop=511))
    stop = free[0][5]
    stopped = list(open_gguf("F32").generate(prompts, 12, stop=stop))
    for ended, whole in zip(stopped, free, strict=True):
        assert ended == (whole[: whole.index(stop) + 1] if stop in whole else whole)
    assert len(stopped[0]) <= 6


def test_greedy_answers_are_transformers_most_likely_tokens(open_gguf, reference):
    prompt = random_ids(25)[0]
    answer = next(open_gguf("F32").generate([prompt], 8, stop=511))
    scores = reference(prompt + answer)[len(prompt) - 1 : -1]
    assert answer == scores.argmax(axis=1).tolist()


@pytest.mark.parametrize("file_type", ["F16", "Q8_0", "Q4_K_M", "Q4_0"])
def test_every_encoding_decodes_to_the_same_bits_each_time(open_gguf, file_type):
    prompts = random_ids(5, 40, 17, 20)
    engine = open_gguf(file_type)
    first, again = (list(engine.generate(prompts, 8, stop=511)) for _ in range(2))
    assert first == again
    bits = [np.concatenate(list(engine.logits(prompts, [1] * 4))).tobytes() for _ in range(2)]
    assert bits[0] == bits[1]


def test_fewer_prompts_run_at_once_where_memory_is_short(open_gguf, monkeypatch):
    prompts = random_ids(5, 40, 17)
    expected = list(open_gguf("F32").generate(prompts, 6, stop=511))
    monkeypatch.setattr(llama_engine, "CACHE_BYTES", 1)
    assert list(open_gguf("F32").generate(prompts, 6, stop=511)) == expected


def test_no_prompts_give_no_answers(open_gguf):
    assert list(open_gguf("F32").generate([], 6, stop=511)) == []
    assert list(open_gguf("F32").logits([], [])) == []


def test_this_build_survives_quantised_weights_or_says_so():
    selfcheck.main()


@pytest.mark.parametrize("survives", [True, False])
def test_the_start_up_check_runs_once_a_build_and_warns_once(survives, tmp_path, monkeypatch, caplog):
    children = []
    monkeypatch.setattr(selfcheck, "CACHE", tmp_path / "llama-cpp.json")
    monkeypatch.setattr(selfcheck, "_child_survives", lambda: children.append(1) or survives)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            selfcheck.extra_buffers_work.cache_clear()
            assert selfcheck.extra_buffers_work() is survives
            selfcheck.extra_buffers_work()
    assert len(children) == 1
    assert len(caplog.records) == (0 if survives else 2)
    selfcheck.extra_buffers_work.cache_clear()


def test_a_child_that_dies_is_a_build_that_does_not_work(monkeypatch):
    monkeypatch.setattr(selfcheck, "CHECK", ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"])
    assert not selfcheck._child_survives()


def test_a_model_loads_with_extra_buffers_off(tiny_gguf, monkeypatch):
    monkeypatch.setattr(selfcheck, "extra_buffers_work", lambda: False)
    engine = LlamaEngine(tiny_gguf("Q4_0"), RUNTIME, 1)
    assert len(next(engine.generate(random_ids(9), 4, stop=511))) == 4
    engine.close()


@pytest.mark.parametrize(
    ("k", "v", "flash"),
    [
        ("f32", "f32", False),
        ("f16", "f16", False),
        ("f16", "f16", True),
        ("q8_0", "f16", False),
        ("q8_0", "q8_0", True),
        ("q4_0", "q4_0", True),
    ],
)
def test_measured_bytes_are_accounted_bytes(model, k, v, flash):
    precision = Precision(k, v)
    with Context(model, n_ctx=300, threads=1, precision=precision, flash_attention=flash) as context:
        context.decode(range(70), range(70))
        context.remove(10, 30)
        assert context.kv_bytes(2, 50) == precision.kv_bytes(library.cache_shape(model), 50)


def test_a_state_moves_to_a_smaller_context(model):
    ids = random_ids(100)[0]
    with Context(model, n_ctx=1024, threads=1) as large, Context(model, n_ctx=256, threads=1) as small:
        large.decode(ids, range(100))
        small.restore(large.state())
        expected = large.decode([7], [100]).copy()
        assert np.abs(small.decode([7], [100]) - expected).max() < 1e-5


def test_a_full_cache_is_an_error_and_never_cut(model):
    with Context(model, n_ctx=256, threads=1) as context:
        context.decode(range(256), range(256))
        with pytest.raises(ContextFull, match="256 cells"):
            context.decode([1], [256])
