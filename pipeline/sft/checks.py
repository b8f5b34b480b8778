"""What would make a fine-tuning run fail or learn nothing, found before it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline import recipes, runtime
from pipeline.config import Lora, Train
from pipeline.errors import nearest

Sides = dict[str, tuple[int, int]]


def problems(base: Path, files: Sequence[Path], lora: Lora, train: Train) -> list[str]:
    """Return one line for each problem of the inputs and settings of a run, empty if there is none."""
    found = [*_device(train), *_files(base, files)]
    if not (base / "config.json").is_file():
        return found
    config, sides = structure(base)
    limit = config.max_position_embeddings
    if train.max_length > limit:
        found.append(f"train.max_length: {train.max_length} is beyond the model's {limit} positions; take at most that")
    return [*found, *_lora(lora, sides)]


def targets(lora: Lora) -> str | list[str]:
    """Return the target modules as PEFT takes them: one name is a name, not PEFT's regular expression."""
    if isinstance(lora.target_modules, str):
        return lora.target_modules if lora.target_modules == "all-linear" else [lora.target_modules]
    return list(lora.target_modules)


def structure(base: Path) -> tuple[Any, Sides]:
    """Return a model's config and the (in, out) features of its Linear modules but the output head's; no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    return config, {name: (m.in_features, m.out_features) for name, m in linear.items()}


def on_cpu(train: Train) -> bool:
    """Return whether the accelerate recipe is for the CPU; accelerate tells its processes only if there is but one."""
    recipe = recipes.ROOT / "accelerate" / f"{train.accelerate}.yaml"
    return bool(yaml.safe_load(recipe.read_text(encoding="utf-8")).get("use_cpu"))


def bf16(train: Train) -> bool:
    """Return whether to train in bfloat16; ``auto`` takes it where the hardware multiplies it itself."""
    if train.bf16 != "auto":
        return train.bf16
    if on_cpu(train):
        return runtime.cpu_has_bf16()
    import torch

    return torch.cuda.is_bf16_supported()


def _device(train: Train) -> Iterator[str]:
    import torch

    if not on_cpu(train) and not torch.cuda.is_available():
        yield f"train.accelerate: '{train.accelerate}' wants a GPU and torch sees none; take -S train.accelerate=cpu"


def _files(base: Path, files: Sequence[Path]) -> Iterator[str]:
    if not (base / "config.json").is_file():
        yield f"{base}: no base model (config.json is missing); make it with `dvc repro base`"
    for file in files:
        if not file.is_file() or file.stat().st_size == 0:
            state = "empty" if file.is_file() else "missing"
            yield f"{file}: {state}, but training needs dialogues in it; make it with `dvc repro convert`"


def _lora(lora: Lora, sides: Sides) -> Iterator[str]:
    wanted = targets(lora)
    known = sorted({name.rsplit(".", 1)[-1] for name in sides})
    names = known if wanted == "all-linear" else wanted
    chosen: Sides = {}
    for name in names:
        matched = {path: pair for path, pair in sides.items() if path == name or path.endswith(f".{name}")}
        if not matched:
            yield (
                f"lora.target_modules: '{name}' matches no Linear module of the base model"
                f"{nearest(name, known)} (known: all-linear, {', '.join(known)})"
            )
        chosen.update(matched)
    narrow = min(chosen, key=lambda path: min(chosen[path]), default=None)
    if narrow is not None and lora.r > min(chosen[narrow]):
        yield (
            f"lora.r: {lora.r} is above {min(chosen[narrow])}, the smaller side of {narrow}, "
            "whose update cannot have a higher rank; take at most that"
        )
