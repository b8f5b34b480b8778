"""Fine-tuning runs: batches that train as one, resuming after a kill, stopping early, two processes, the adapter."""

from __future__ import annotations

import json
import logging
import os
import signal
import time

import pytest
import yaml

from pipeline import export, io, prompts, train
from pipeline.sft import adapter, checkpoints
from tests.training import SMALL, changed, curves, launch, losses_of, save_params, weights

pytest_plugins = ["tests.training_workspace"]


def test_accumulated_batches_train_as_one(workspace, small):
    """Every token weighs the same in a step, however the step is cut into batches."""
    adapters = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        steps = {"batch_size": size, "gradient_accumulation": accumulation, "max_steps": 3, "evals": 1}
        train.main(changed(small, "train", **steps))
        adapters.append(weights(train.ADAPTER))
    for other in adapters[1:]:
        assert max(abs(other[name] - adapters[0][name]).max() for name in other) < 1e-4


def test_a_killed_run_resumes_and_ends_as_if_never_killed(workspace, small, caplog):
    train.main(small)
    whole, course = weights(train.ADAPTER), curves(train.CURVE)
    summary = io.read_json(train.CURVE / "summary.json")
    assert summary["steps"] == 24
    assert summary["eval_loss"]["best"]["value"] < summary["eval_loss"]["first"]["value"]
    assert len(course["eval_loss"].splitlines()) == 1 + 1 + SMALL["evals"]
    assert list(course) == ["eval_loss", "learning_rate", "loss"]
    assert not any(checkpoints.ROOT.iterdir())

    (train.ADAPTER / "adapter_model.safetensors").unlink()
    process = launch("cpu", workspace)
    while process.poll() is None and not any(map(checkpoints.newest, checkpoints.ROOT.iterdir())):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    run = next(checkpoints.ROOT.iterdir())
    newest = checkpoints.newest(run)
    step = io.read_json(newest / checkpoints.STATE)["global_step"]
    assert 0 < step < 24
    assert not (train.ADAPTER / "adapter_model.safetensors").exists()

    with caplog.at_level(logging.INFO):
        train.main(small)
    assert f"resuming from {newest}" in caplog.text
    again = weights(train.ADAPTER)
    assert again.keys() == whole.keys()
    assert max(abs(again[name] - whole[name]).max() for name in whole) < 1e-6
    assert curves(train.CURVE) == course
    assert io.read_json(train.CURVE / "summary.json") == summary
    assert not run.exists()


def test_a_run_that_gets_no_better_stops_early(workspace, small):
    worse = changed(small, "train", learning_rate=5.0, scheduler="constant", warmup=0.0, early_stopping=2)
    train.main(worse)
    summary = io.read_json(train.CURVE / "summary.json")
    assert summary["stopped_early"]
    assert summary["steps"] < 24


def test_two_processes_train_as_one_of_twice_the_batch_and_one_writes(workspace, small):
    """Also where an epoch ends in a row for the first process's last batch and none for the second's."""
    talk = list(io.read_jsonl(train.SPLITS["train"]))
    io.write_jsonl(train.SPLITS["train"], talk[:35])
    short = changed(small, "train", max_steps=3, evals=1, gradient_accumulation=2)
    train.main(changed(short, "train", batch_size=2 * SMALL["batch_size"]))
    alone, losses = weights(train.ADAPTER), losses_of(train.CURVE)
    save_params(changed(short, "train", accelerate="cpu-2"), workspace)
    process = launch("cpu-2", workspace)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    assert errors.count("train: best eval loss") == 1
    together = weights(train.ADAPTER)
    assert max(abs(together[name] - alone[name]).max() for name in alone) < 1e-5
    assert losses_of(train.CURVE) == pytest.approx(losses, abs=1e-4)
    assert not any(checkpoints.ROOT.iterdir())
    data = io.read_json(train.CURVE / "summary.json")["data"]
    assert data["train"]["rows"] == 13  # 8 a step, so the second step takes the last 5


@pytest.mark.parametrize(
    ("model", "base", "revision"),
    [("nano", "nano", None), ("Qwen3-0.6B", "Qwen/Qwen3-0.6B", "c1899de289a04d12100db370d81485cdf75e47ca")],
)
def test_the_adapter_names_its_base_and_loads(workspace, small, tokenizer, model, base, revision):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load():
        return AutoModelForCausalLM.from_pretrained(train.BASE, dtype="float32")

    torch.manual_seed(0)
    trained = get_peft_model(load(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    directory = workspace / "adapter"
    adapter.save(trained, tokenizer, small.model_copy(update={"model": model}), directory)
    settings = json.loads((directory / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == (base, revision)
    assert settings["target_modules"] == sorted(settings["target_modules"])
    front = yaml.safe_load((directory / "README.md").read_text().split("---")[1])
    assert (front["base_model"], front["library_name"], front["license"]) == (base, "peft", "apache-2.0")
    assert "not medical advice" in (directory / "README.md").read_text()
    assert str(workspace) not in "".join(p.read_text() for p in directory.iterdir() if p.suffix != ".safetensors")

    reread = AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": "睡不着<|im_end|>怎么办 it's 2024"}]
    assert type(reread).__name__ == "Qwen2Tokenizer"
    assert reread.chat_template == prompts.template()
    assert prompts.prompt_ids(reread, messages) == prompts.prompt_ids(tokenizer, messages)
    assert export.stop_ids(reread)[0] == reread.eos_token_id
    ids = torch.tensor([prompts.prompt_ids(tokenizer, messages)])
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(load(), directory)(ids).logits, trained(ids).logits)
