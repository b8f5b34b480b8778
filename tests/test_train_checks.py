"""Before a fine-tuning run: settings held against the model, precision, which checkpoint it goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import runtime, train
from pipeline.config import Lora
from pipeline.errors import UserError
from pipeline.sft import checkpoints, checks
from tests.training import changed

pytest_plugins = ["tests.training_workspace"]

LORA = {"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear"}


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
