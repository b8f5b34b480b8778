"""The transformers engine: batched answers and logits are those of one sequence at a time."""

from __future__ import annotations

import io
import shutil
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from pipeline.config import Runtime
from pipeline.engines.torch import engine as torch_engine
from pipeline.engines.torch.engine import TorchEngine
from pipeline.quant import compressed
from pipeline.quant.recipe import CompressedRecipe
from tests.quantizing import job

RUNTIME = Runtime(seed=0, threads=1)
STOP = 511


def random_ids(*lengths: int) -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(0, 500, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def open_directory(tiny_model_dir):
    """A function that opens the tiny model with a batch size."""
    return lambda batch_size=4, directory=tiny_model_dir: TorchEngine(directory, RUNTIME, batch_size)


@pytest.fixture(scope="module")
def reference(tiny_model_dir):
    """The same model, plainly loaded."""
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_logits_are_the_models_own_in_order(open_directory, reference, batch_size, monkeypatch):
    monkeypatch.setattr(torch_engine, "WINDOW_BATCHES", 2)
    sequences, starts = random_ids(30, 4, 90, 2, 55, 9), [10, 1, 89, 1, 30, 3]
    found = list(open_directory(batch_size).logits(sequences, starts))
    for ids, start, scores in zip(sequences, starts, found, strict=True):
        with torch.inference_mode():
            expected = reference(torch.tensor([ids])).logits[0, start - 1 : -1].numpy()
        assert scores.dtype == np.float32
        assert scores.shape == (len(ids) - start, 512)
        assert np.abs(scores - expected).max() < 1e-4 < np.abs(expected).max()


def test_logits_come_before_all_sequences_are_computed(open_directory, monkeypatch):
    monkeypatch.setattr(torch_engine, "WINDOW_BATCHES", 1)
    engine = open_directory(2)
    computed = []
    hidden = engine._hidden
    monkeypatch.setattr(engine, "_hidden", lambda ids, starts: computed.append(len(ids)) or hidden(ids, starts))
    next(engine.logits(random_ids(5, 6, 7, 8), [1, 1, 1, 1]))
    assert computed == [2]


def test_many_prompts_at_once_get_the_answers_of_one_at_a_time(open_directory):
    prompts = random_ids(5, 40, 1, 80, 12, 33, 7)
    alone = list(open_directory(1).generate(prompts, 16, STOP))
    assert list(open_directory(3).generate(prompts, 16, STOP)) == alone
    assert len({tuple(answer) for answer in alone}) == len(prompts)
    assert {len(answer) for answer in alone} == {16}


def test_answers_are_the_most_likely_tokens(open_directory, reference):
    prompt = random_ids(20)[0]
    answer = next(open_directory().generate([prompt], 8, STOP))
    with torch.inference_mode():
        scores = reference(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    assert answer == scores.argmax(dim=-1).tolist()


def test_answers_end_with_the_stop_token(open_directory):
    prompts = random_ids(9, 10, 11)
    free = list(open_directory().generate(prompts, 12, STOP))
    stop = free[0][5]
    stopped = list(open_directory().generate(prompts, 12, stop))
    for ended, whole in zip(stopped, free, strict=True):
        assert ended == (whole[: whole.index(stop) + 1] if stop in whole else whole)
    assert len(stopped[0]) <= 6


def test_the_checkpoints_own_sampling_settings_are_not_obeyed(open_directory, tiny_model_dir, tmp_path):
    directory = shutil.copytree(tiny_model_dir, tmp_path / "sampling")
    GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0).save_pretrained(directory)
    prompts = random_ids(9, 30)
    plain = list(open_directory().generate(prompts, 12, STOP))
    assert list(open_directory(directory=directory).generate(prompts, 12, STOP)) == plain


@pytest.fixture(scope="module")
def compressed_directory(tiny_model_dir, tmp_path_factory, params):
    """The tiny model in FP8, as quantize writes it."""
    recipe = CompressedRecipe(
        family="compressed", summary="test", modifier="quantization", scheme="FP8_DYNAMIC", ignore=("lm_head",)
    )
    dialogue = {"messages": [{"role": "user", "content": "咳嗽"}, {"role": "assistant", "content": "多喝水"}]}
    task = job(tiny_model_dir, params, recipe, tmp_path_factory.mktemp("fp8") / "model", [dialogue])
    compressed.make(task)
    return task.out


def test_a_compressed_directory_gives_logits_at_once(open_directory, compressed_directory, reference):
    scores = next(open_directory(directory=compressed_directory).logits(random_ids(20), [1]))
    with torch.inference_mode():
        expected = reference(torch.tensor(random_ids(20))).logits[0, :-1].numpy()
    assert 0 < np.abs(scores - expected).max() < np.abs(expected).max() / 4


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_of_loading_show_on_terminals_alone(open_directory, compressed_directory, monkeypatch, terminal):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    open_directory(directory=compressed_directory)
    assert ("100%" in stderr.getvalue()) == terminal
    assert terminal or not stderr.getvalue()


def test_the_same_bits_each_time(open_directory):
    sequences = random_ids(30, 4, 50)
    bits = [np.concatenate(list(open_directory().logits(sequences, [1, 1, 1]))).tobytes() for _ in range(2)]
    assert bits[0] == bits[1]
