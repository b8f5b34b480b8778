"""The base model in the pipeline's own GGUF encodings, dequantised: what rounding alone changes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline import config, models
from pipeline.nano import export
from pipeline.nano.model import CausalLM
from pipeline.quant import gguf, recipe
from pipeline.quant.job import Job

MODEL = "nano"
NO_DATASET = {"name": "none", "repo": None}


def dequantised(folder: Path, encodings: list[str]) -> Iterator[CausalLM]:
    """Yield the model of ``folder``, float32, with the weights of each encoding."""
    for encoding in encodings:
        with tempfile.TemporaryDirectory() as out:
            job = Job(
                encoding=encoding,
                recipe=recipe.read(encoding),
                model=models.read(MODEL),
                params=config.load(),
                merged=folder,
                dialogues=Path(),
                source=NO_DATASET,
                out=Path(out),
            )
            gguf.make(job)
            model = export.load(folder)
            model.load_state_dict(_weights(Path(out) / f"{job.name}.gguf", model))
            yield model


def _weights(path: Path, model: CausalLM) -> dict[str, torch.Tensor]:
    """Return the tensors of a GGUF file under transformers' names."""
    from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map
    from gguf.quants import dequantize

    names = get_tensor_name_map(MODEL_ARCH.QWEN3, model.config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    found = {name: stored[names.get_name(name, try_suffixes=(".weight",))] for name in model.state_dict()}
    return {
        name: torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
        for name, tensor in found.items()
    }
