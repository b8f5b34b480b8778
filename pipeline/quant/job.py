"""What goes into a family of formats, and what comes out: one export to make, and one export to verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Params
from pipeline.models import ModelRecipe
from pipeline.prompts import Message
from pipeline.quant.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """One encoding to make of the merged model."""

    encoding: str
    recipe: Recipe
    model: ModelRecipe  # the base model that the merged one descends from
    params: Params
    merged: Path  # model directory
    dialogues: Path  # training dialogues, JSON Lines
    source: Mapping[str, Any]  # where the dialogues come from
    out: Path  # directory to fill

    @property
    def base_name(self) -> str:
        """The base model's name, such as Qwen3-0.6B."""
        return f"{self.model.basename}-{self.model.size_label}"

    @property
    def name(self) -> str:
        """The export's name by GGUF's convention: <Base>-<Size>-<Finetune>-<Encoding>."""
        return f"{self.base_name}-{self.params.quantize.finetune}-{self.encoding}"


@dataclass(frozen=True)
class Export:
    """An export on disk, as its users will load it."""

    bits: int  # of all tensors together
    tensor_types: Mapping[str, int]  # type -> how many tensors
    chat_ids: Callable[[Sequence[Message], bool], list[int]]  # messages, whether an answer follows -> token ids
    logits: Callable[[Sequence[int]], np.ndarray]  # token ids -> float32 [len - 1, vocabulary], predicting ids[1:]
    usage: str  # Markdown: how to run it
    library: str  # the hub's library_name
    exact: bool = False  # no quantisation: logits must be the merged model's
    fallbacks: Sequence[Mapping[str, Any]] = ()  # tensors that are not stored in the type asked for
    checks: Mapping[str, Any] = field(default_factory=dict)  # further measured numbers of the family's own
