"""What the tests of quantize share: jobs on small models, and models of awkward widths."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from pipeline import io, models, prompts
from pipeline.config import Params
from pipeline.quant import gguf
from pipeline.quant.job import Job
from pipeline.quant.recipe import GgufRecipe, Recipe

SOURCE = {"source": "hub", "name": "MedChatZH", "license": "research", "repo": "tyang816/MedChatZH", "revision": "1a2b"}


def job(merged: Path, params: Params, recipe: Recipe, out: Path, dialogues: list[dict], encoding: str = "test") -> Job:
    """Return a job that writes into the new directory ``out``; the dialogues are written beside it."""
    out.mkdir(parents=True)
    train = out.with_name("train.jsonl")
    io.write_jsonl(train, dialogues)
    return Job(encoding, recipe, models.read("Qwen3-0.6B"), params, merged, train, SOURCE, out)


def random_model(directory: Path, like: Path, **changes) -> Path:
    """Save a random bf16 model with another's tokenizer and config, but for ``changes``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(like)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    prompts.load_tokenizer(like).save_pretrained(directory)
    return directory


def gguf_files(model: Path, params: Params, folder: Path) -> Callable[[str], Path]:
    """Return a function from a GGUF file type to the model's file of it in ``folder``, made when first asked for."""

    @cache
    def make(file_type: str) -> Path:
        recipe = GgufRecipe(family="gguf", file_type=file_type, summary="a test")
        task = job(model, params, recipe, folder / file_type, [], encoding=file_type)
        gguf.make(task)
        return task.out / f"{task.name}.gguf"

    return make
