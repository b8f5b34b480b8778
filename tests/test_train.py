"""Fine-tuning: rows, isolation of packed examples, checks before a run, resuming after a kill, the adapter."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline import config, export, io, prompts, runtime, train
from pipeline.config import Lora
from pipeline.errors import UserError
from pipeline.sft import adapter, checkpoints, checks, dataset
from tests.conftest import ROOT

SMALL = {  # a run of seconds
    "epochs": 1,
    "max_steps": 24,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "learning_rate": 0.002,
    "max_length": 128,
    "evals": 8,
    "early_stopping": 8,
    "bf16": False,
}
LORA = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}


def changed(params: config.Params, section: str, **values) -> config.Params:
    """Return the parameters with some keys of a section changed."""
    part = getattr(params, section).model_copy(update=values)
    return params.model_copy(update={section: part})


@pytest.fixture
def small(params) -> config.Params:
    """Parameters of a run of seconds."""
    return changed(changed(params, "train", **SMALL), "runtime", threads=1)


@pytest.fixture
def workspace(tmp_path, tiny_model_dir, small, monkeypatch) -> Path:
    """A repository root that holds what train reads, as the current directory."""
    talk = [
        {
            "id": f"d{i}",
            "messages": [
                {"role": "user", "content": f"咳嗽{i}天了，怎么办？"},
                {"role": "assistant", "content": f"多喝温水，休息{i}天。"},
            ],
        }
        for i in range(48)
    ]
    io.write_jsonl(tmp_path / train.SPLITS["train"], talk[:40])
    io.write_jsonl(tmp_path / train.SPLITS["validation"], talk[40:])
    (tmp_path / "artifacts").mkdir()
    (tmp_path / train.BASE).symlink_to(tiny_model_dir)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    save_params(small, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_params(params: config.Params, directory: Path) -> None:
    (directory / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json")), encoding="utf-8")


def launch(recipe: str, directory: Path) -> subprocess.Popen:
    """Start the stage in a process group of its own, as dvc.yaml does."""
    script = str(Path(sys.executable).with_name("accelerate"))
    command = [script, "launch", "--quiet", "--num_cpu_threads_per_process", "1"]
    command += ["--config_file", f"recipes/accelerate/{recipe}.yaml", "-m", "pipeline.train"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=directory, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def weights(directory: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(directory / "adapter_model.safetensors")


def curves(directory: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted((directory / "plots/metrics").glob("*.tsv"))}


def losses_of(directory: Path) -> list[float]:
    return [float(line.split("\t")[1]) for line in curves(directory)["loss"].splitlines()[1:]]


class TestRows:
    def test_an_example_a_turn_with_loss_on_the_answer_alone(self, tokenizer, dialogues, tmp_path):
        io.write_jsonl(tmp_path / "chat.jsonl", dialogues)
        counts = Counter()
        rows = list(dataset.examples(tmp_path / "chat.jsonl", tokenizer, 1024, counts))
        turns = [turn for record in dialogues for turn in prompts.turns(record["messages"])]
        assert len(rows) == len(turns) == counts["examples"] == 4
        for row, turn in zip(rows, turns, strict=True):
            prompt, answer = prompts.example_ids(tokenizer, turn)
            assert row["input_ids"] == prompt + answer
            assert row["labels"] == [dataset.NO_LOSS] * len(prompt) + answer
            assert row["labels"][-1] == prompts.end_of_turn_id(tokenizer)
        assert counts["tokens"] == sum(len(row["input_ids"]) for row in rows)

    @pytest.mark.parametrize("spare", [-5, 0, 1, 7, 1000])
    def test_the_prompt_is_cut_and_the_answer_never(self, tokenizer, dialogues, tmp_path, spare):
        io.write_jsonl(tmp_path / "chat.jsonl", dialogues[:1])
        prompt, answer = prompts.example_ids(tokenizer, dialogues[0]["messages"])
        counts = Counter()
        rows = list(dataset.examples(tmp_path / "chat.jsonl", tokenizer, len(answer) + spare, counts))
        if spare <= 0:
            assert rows == []
            assert counts["dropped"] == 1
            return
        assert rows[0]["input_ids"] == (prompt + answer)[-len(answer) - spare :]
        assert [label for label in rows[0]["labels"] if label != dataset.NO_LOSS] == answer
        assert counts["cut"] == (spare < len(prompt))

    def test_a_split_without_an_example_is_named(self, workspace, tokenizer, small):
        short = small.train.model_copy(update={"max_length": 3})
        with pytest.raises(UserError) as error:
            dataset.rows(train.SPLITS, tokenizer, short, workspace / "cache")
        assert [problem.split(":")[0] for problem in error.value.problems] == [str(p) for p in train.SPLITS.values()]
        assert "train.max_length = 3" in error.value.problems[0]

    def test_packing_keeps_every_example_whole(self, workspace, tokenizer, small):
        loose = small.train.model_copy(update={"packing": False})
        separate, _ = dataset.rows(train.SPLITS, tokenizer, loose, workspace / "a")
        packed, _ = dataset.rows(train.SPLITS, tokenizer, small.train, workspace / "b")
        pieces = []
        for row in packed["train"]:
            ends = [sum(row["seq_lengths"][: i + 1]) for i in range(len(row["seq_lengths"]))]
            for end, length in zip(ends, row["seq_lengths"], strict=True):
                pieces.append((tuple(row["input_ids"][end - length : end]), tuple(row["labels"][end - length : end])))
        assert len(packed["train"]) < len(separate["train"]) / 2
        assert Counter(pieces) == Counter((tuple(r["input_ids"]), tuple(r["labels"])) for r in separate["train"])


def test_packed_examples_do_not_see_one_another(workspace, small, tokenizer):
    """The trainer's loss of a packed batch is the token mean of losses computed one example at a time."""
    import torch

    trainer, _ = train.prepare(small, train.arguments(small, workspace / "run"), tokenizer)
    model = trainer.model.eval()
    base = model.get_base_model()
    for weight in model.parameters():  # sharper attention: a leak would show
        if weight.dim() > 1:
            weight.data.mul_(3)
    rows = [trainer.train_dataset[i] for i in range(3)]
    assert max(len(row["seq_lengths"]) for row in rows) > 1
    batch = trainer.data_collator(rows)

    examples = dataset.examples(train.SPLITS["train"], tokenizer, small.train.max_length, Counter())
    losses = {tuple(row["input_ids"]): row["labels"] for row in examples}
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            start = 0
            for length in row["seq_lengths"]:
                ids = row["input_ids"][start : start + length]
                labels = torch.tensor(losses[tuple(ids)])[1:]
                logits = type(base).forward(base, torch.tensor([ids])).logits[0, :-1]
                total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
                tokens += int((labels != dataset.NO_LOSS).sum())
                start += length
        packed = trainer.compute_loss(model, dict(batch)).item()
        running = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
        leaking = trainer.compute_loss(model, batch | {"position_ids": running}).item()
    assert packed == pytest.approx(total / tokens, abs=1e-4)
    assert abs(leaking - packed) > 1e-2


def test_accumulated_batches_train_as_one(workspace, small):
    """Every token weighs the same in a step, however the step is cut into batches."""
    adapters = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        steps = {"batch_size": size, "gradient_accumulation": accumulation, "max_steps": 3, "evals": 1}
        train.main(changed(small, "train", **steps))
        adapters.append(weights(train.ADAPTER))
    for other in adapters[1:]:
        assert max(abs(other[name] - adapters[0][name]).max() for name in other) < 1e-4


class TestChecks:
    @pytest.mark.parametrize(
        ("lora", "length", "said"),
        [
            ({}, 128, []),
            ({"target_modules": ("q_proj", "self_attn.v_proj")}, 128, []),
            ({"target_modules": "q_proj"}, 128, []),
            ({"target_modules": ("q_prj",)}, 128, ["'q_prj' matches no Linear module", "did you mean 'q_proj'?"]),
            ({"target_modules": ("lm_head", "wq")}, 128, ["'lm_head' matches no", "'wq' matches no"]),
            ({"r": 129}, 128, ["lora.r: 129 is above 128", "k_proj"]),
            ({"r": 257, "target_modules": ("q_proj",)}, 4096, ["lora.r: 257 is above 256", "max_length: 4096"]),
        ],
    )
    def test_settings_are_held_against_the_model(self, workspace, small, lora, length, said):
        settings = small.train.model_copy(update={"max_length": length})
        found = checks.problems(train.BASE, list(train.SPLITS.values()), Lora(**LORA | lora), settings)
        assert bool(found) == bool(said)
        assert all(part in "\n".join(found) for part in said)

    def test_all_that_is_missing_is_named_at_once(self, workspace, small, monkeypatch):
        train.BASE.unlink()
        train.SPLITS["train"].unlink()
        train.SPLITS["validation"].write_text("")
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError) as error:
            train.main(changed(small, "train", accelerate="gpu"))
        text = "\n".join(error.value.problems)
        assert len(error.value.problems) == 4
        assert "dvc repro base" in text
        assert "train.jsonl: missing" in text
        assert "validation.jsonl: empty" in text
        assert "-S train.accelerate=cpu" in text
        assert not Path(".checkpoints").exists()

    @pytest.mark.parametrize(
        ("info", "has"),
        [
            ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 avx2\n", True),
            ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
            ("Features\t: fp asimd bf16 i8mm\n", True),
            ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: bf16\n", False),
            ("", False),
            (None, False),
        ],
    )
    def test_auto_takes_bf16_where_the_cpu_has_it(self, workspace, small, tmp_path, monkeypatch, info, has):
        monkeypatch.setattr(runtime, "CPUINFO", tmp_path / "cpuinfo")
        if info is not None:
            runtime.CPUINFO.write_text(info)
        for recipe in ("cpu", "cpu-2"):
            auto = changed(small, "train", bf16="auto", accelerate=recipe)
            assert train.arguments(auto, workspace / "run").bf16 == checks.bf16(auto.train) == has
        assert checks.bf16(small.train) is False
        assert checks.bf16(small.train.model_copy(update={"bf16": True})) is True

    @pytest.mark.parametrize("has", [True, False])
    def test_auto_asks_the_gpu_where_it_trains_on_one(self, workspace, small, monkeypatch, has):
        import torch

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has)
        monkeypatch.setattr(runtime, "cpu_has_bf16", lambda: not has)
        assert checks.bf16(small.train.model_copy(update={"bf16": "auto", "accelerate": "gpu"})) is has


class TestCheckpoints:
    def test_the_key_follows_what_determines_a_run(self, workspace, small):
        data = [train.SPLITS["train"]]
        key = checkpoints.folder(small, data)
        assert checkpoints.folder(changed(small, "bench", repetitions=9), data) == key
        assert checkpoints.folder(changed(small, "lora", r=4), data) != key
        assert checkpoints.folder(changed(small, "runtime", seed=1), data) != key
        with data[0].open("a") as out:
            out.write("\n")
        assert checkpoints.folder(small, data) != key

    def test_a_checkpoint_cut_short_is_passed_over(self, tmp_path):
        assert checkpoints.newest(tmp_path) is None
        for step, state in {9: "{}", 10: "{}", 30: '{"epoch": 1', 40: None}.items():
            (tmp_path / f"checkpoint-{step}").mkdir()
            if state is not None:
                (tmp_path / f"checkpoint-{step}" / checkpoints.STATE).write_text(state)
        assert checkpoints.newest(tmp_path).name == "checkpoint-10"


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
