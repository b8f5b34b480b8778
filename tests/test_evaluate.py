"""The evaluate stage on a tiny model: what it writes, that it repeats, and what it says when something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import evaluate, io, prompts
from pipeline.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def settings(params):
    """The real parameters, made small."""
    small = params.evaluate.model_copy(update={"max_new_tokens": 6, "batch_size": 2, "samples": 2})
    return params.model_copy(update={"evaluate": small})


@pytest.fixture
def workspace(tmp_path, monkeypatch, tiny_model_dir, dialogues):
    """A folder with recipes, scorer, test set and the tiny model as base and merged, as the working directory."""
    for name in ("recipes", "data/embedded"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    for artifact in (evaluate.BASE, evaluate.MERGED):
        shutil.copytree(tiny_model_dir, tmp_path / artifact)
    io.write_jsonl(tmp_path / evaluate.TEST, dialogues)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def disturb(directory: Path) -> None:
    """Change a model's weights a little."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    noisy = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in weights.items()}
    save_file(noisy, directory / "model.safetensors", metadata={"format": "pt"})


def run(settings, cell: str) -> dict:
    evaluate.main(settings, cell)
    return io.read_json(evaluate.QUALITY / f"{cell}.json")


def test_the_merged_model_has_no_divergence_from_itself(workspace, settings, dialogues):
    result = run(settings, "merged")
    metrics = result["metrics"]
    assert (metrics["kld"]["value"], metrics["same_top"]["value"]) == (0, 1)
    assert metrics["perplexity"]["n"] == len(dialogues)
    assert 100 < metrics["perplexity"]["value"] < 3000  # random weights over a vocabulary of 512
    assert result["per_dialogue"]["ids"] == [dialogue["id"] for dialogue in dialogues]
    assert all(0 <= f1 <= 1 for f1 in result["per_dialogue"]["bert_f1"])
    assert result["scorer"]["name"] == settings.evaluate.scorer
    assert result["size_bytes"]["value"] == (evaluate.MERGED / "model.safetensors").stat().st_size
    assert set(metrics) == {
        "bert_f1", "bert_f1_rescaled", "bert_f1_shuffled", "perplexity", "bits_per_char", "kld", "same_top", "ended",
        "answer_chars",
    }  # fmt: skip


def test_another_model_is_measured_against_the_merged_one(workspace, settings):
    copy = run(settings, "base")
    assert copy["metrics"]["kld"]["value"] == 0  # the same weights in two engines
    disturb(evaluate.BASE)
    changed = run(settings, "base")
    assert changed["metrics"]["kld"]["value"] > 0
    assert changed["metrics"]["same_top"]["value"] < 1
    assert changed["metrics"]["perplexity"]["value"] != copy["metrics"]["perplexity"]["value"]


def test_likelihood_equals_a_direct_computation(workspace, settings, tokenizer, dialogues):
    import math

    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(evaluate.MERGED, dtype=torch.float32).eval()
    loss, tokens = 0.0, 0
    for dialogue in dialogues:
        prompt, answer = prompts.example_ids(tokenizer, dialogue["messages"])
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        loss += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum").item()
        tokens += len(answer)
    assert run(settings, "merged")["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(loss / tokens), rel=1e-4)


def test_two_runs_write_the_same_bytes_and_timings_apart(workspace, settings):
    run(settings, "merged")
    first = (evaluate.QUALITY / "merged.json").read_bytes()
    run(settings, "merged")
    assert (evaluate.QUALITY / "merged.json").read_bytes() == first
    timings = json.loads(Path("eval/timings/evaluate@merged.json").read_text())
    assert {"generation_tokens_per_second", "scoring_tokens_per_second", "bert_f1_seconds"} <= set(timings)


def test_samples_are_the_same_dialogues_whatever_the_order(dialogues):
    texts = [f"answer to {dialogue['id']}" for dialogue in dialogues]
    chosen = evaluate.samples(dialogues, texts, 2)
    assert chosen == evaluate.samples(dialogues[::-1], texts[::-1], 2)
    assert all(sample["answer"] == f"answer to {sample['id']}" for sample in chosen)
    two_turns = next(s for s in evaluate.samples(dialogues, texts, 3) if s["id"] == "d1")
    assert two_turns["prompt"] == "那能喝茶吗？"


def test_everything_missing_is_named_at_once(tmp_path, monkeypatch, settings):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        evaluate.main(settings, "Q4_K_M")
    text = str(error.value)
    for part in ("artifacts/merged", "dvc repro merge", "artifacts/quantized/Q4_K_M", "test.jsonl", "baseline.csv"):
        assert part in text
    assert not Path("eval").exists()


def test_an_empty_test_set_is_an_error(workspace, settings):
    evaluate.TEST.write_text("")
    with pytest.raises(UserError, match=r"test\.jsonl: no test dialogues"):
        evaluate.main(settings, "merged")


def test_an_unknown_cell_gets_the_nearest_name(workspace, settings):
    with pytest.raises(UserError, match="did you mean 'Q4_K_M'"):
        evaluate.main(settings, "Q4_K_N")
