"""What the tests of quantize share: jobs on small models, and models of awkward widths."""

from __future__ import annotations

from pathlib import Path

from pipeline import io, models, prompts
from pipeline.config import Params
from pipeline.quant.job import Job
from pipeline.quant.recipe import Recipe

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
