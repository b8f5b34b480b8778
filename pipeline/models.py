"""recipes/models/<name>.yaml to a base model directory: embedded, local, from the hub, or random weights of a shape."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from pipeline import io, recipes
from pipeline.errors import UserError
from pipeline.schema import Section

MODEL_FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
]

RANDOM_CARD = """---
library_name: transformers
license: {recipe.license}
tags: [random-weights]
---

# {recipe.basename} {recipe.size_label}

**The weights are random**: {parameters} of them in bfloat16, matrices drawn with standard deviation {std} under seed
{seed}. Nothing was learnt, and what the model writes is noise: only its speed and the memory it takes mean anything.
The tokenizer is another model's and fills the first rows of the vocabulary.
"""


class ModelRecipe(Section):
    """A base model: where it comes from and how its descendants are named."""

    source: Literal["local", "hub", "random"]
    basename: str  # first part of the GGUF names, such as Qwen3
    size_label: str  # second part, such as 0.6B
    license: str
    languages: tuple[str, ...]
    summary: str  # one line, as `python -m pipeline list` prints it
    path: str | None = None  # local: a model directory
    repo: str | None = None  # hub: owner/name
    revision: str | None = None  # hub: a commit
    config: dict[str, Any] | None = None  # random: keys of the transformers config, with model_type
    tokenizer: str | None = None  # random: a directory to take the tokenizer from

    @model_validator(mode="after")
    def _keys_of_source(self) -> ModelRecipe:
        needed = {"local": ["path"], "hub": ["repo", "revision"], "random": ["config", "tokenizer"]}[self.source]
        if missing := [key for key in needed if getattr(self, key) is None]:
            raise ValueError(f"source '{self.source}' needs {' and '.join(missing)}")
        return self


def read(name: str) -> ModelRecipe:
    """Read the recipe of a model."""
    return recipes.read("models", name, ModelRecipe)


def provide(recipe: ModelRecipe, directory: Path, seed: int) -> None:
    """Fill ``directory`` with the model's config, tokenizer and safetensors weights; raise UserError if it cannot."""
    sources: dict[str, Callable[[ModelRecipe, Path, int], None]] = {"local": _copy, "hub": _fetch, "random": _random}
    sources[recipe.source](recipe, directory, seed)
    check(directory, origin=recipe.path or recipe.repo or "recipe")


def check(directory: Path, origin: str) -> None:
    """Raise UserError with everything a model directory lacks."""
    wanted = {
        "config.json": "transformers config (config.json)",
        "tokenizer*.json": "tokenizer (tokenizer.json)",
        "*.safetensors": "safetensors weights (*.safetensors; pickled .bin weights are not loaded)",
    }
    missing = [what for pattern, what in wanted.items() if not any(directory.glob(pattern))]
    if missing:
        raise UserError(*(f"{origin}: the model directory has no {what}; add it" for what in missing))


def _copy(recipe: ModelRecipe, directory: Path, seed: int) -> None:
    source = Path(recipe.path)
    if not source.is_dir():
        raise UserError(f"{source}: no such model directory; mend `path` in the model's recipe")
    for file in sorted(source.iterdir()):
        if any(file.match(pattern) for pattern in MODEL_FILES):
            shutil.copyfile(file, directory / file.name)


def _fetch(recipe: ModelRecipe, directory: Path, seed: int) -> None:
    from huggingface_hub import snapshot_download

    from pipeline import hub

    with hub.reported(f"{recipe.repo}@{recipe.revision}", offline="-S model=nano"):
        snapshot = hub.retried(
            lambda: snapshot_download(recipe.repo, revision=recipe.revision, allow_patterns=MODEL_FILES)
        )
    for file in Path(snapshot).iterdir():
        shutil.copyfile(file, directory / file.name)


def _random(recipe: ModelRecipe, directory: Path, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(recipe.tokenizer, local_files_only=True)
    config = AutoConfig.for_model(
        **{"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **recipe.config}
    )
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"config.vocab_size: {config.vocab_size} in the model's recipe, but {recipe.tokenizer} has "
            f"{len(tokenizer)} tokens; write at least as many"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    card = RANDOM_CARD.format(recipe=recipe, seed=seed, std=config.initializer_range, parameters=model.num_parameters())
    io.write_text(directory / "README.md", card)
