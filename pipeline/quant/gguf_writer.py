"""Merged safetensors to an unquantised GGUF file, tensor by tensor: weights, tokenizer, chat template and names."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.quant import gguf_header, weights
from pipeline.quant.job import Job
from pipeline.quant.weights import Stored

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFWriter
    from transformers import PretrainedConfig

ARCHITECTURES = {"Qwen3ForCausalLM": "QWEN3", "Qwen2ForCausalLM": "QWEN2"}  # transformers' class -> gguf's MODEL_ARCH
MATRIX_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # file type -> torch dtype of its matrices
OUTPUT = "lm_head.weight"


def write(job: Job, path: Path, file_type: str) -> None:
    """Write the merged model as one GGUF file whose matrices are F32, F16 or BF16; vectors stay F32.

    Raises UserError for an architecture or a tokenizer that has no place here, and for weights beyond F16's range.
    """
    import gguf
    from transformers import AutoConfig

    logging.getLogger("gguf").setLevel(logging.WARNING)  # it tells of every file's endianness
    config = AutoConfig.from_pretrained(job.merged, local_files_only=True)
    architecture = _architecture(job.merged, config)
    tensors = _tensors(job.merged, config, architecture)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    gguf_header.add(writer, job, config)
    writer.add_file_type(_file_type(file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_tensors(writer, tensors, file_type)
    writer.close()


def _architecture(merged: Path, config: PretrainedConfig) -> Any:
    import gguf

    name = (config.architectures or ["none"])[0]
    if name not in ARCHITECTURES:
        raise UserError(
            f"{merged}/config.json: architectures: {name} cannot be written as GGUF here "
            f"(known: {', '.join(ARCHITECTURES)}); leave the GGUF encodings out of quantize.encodings"
        )
    return gguf.MODEL_ARCH[ARCHITECTURES[name]]


def _file_type(file_type: str) -> int:
    import gguf

    prefix = "ALL" if file_type == "F32" else "MOSTLY"
    return gguf.LlamaFileType[f"{prefix}_{file_type}"]


def _tensors(merged: Path, config: PretrainedConfig, architecture: Any) -> dict[str, Stored]:
    """Return the tensors to write by their names in GGUF; llama.cpp itself shares a tied output with the embedding."""
    import gguf

    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found = {tensor.name: tensor for tensor in weights.stored(merged)}
    if config.tie_word_embeddings:
        found.pop(OUTPUT, None)
    elif OUTPUT not in found:
        raise UserError(f"{merged}: {OUTPUT} is missing and config.json does not tie it; run `dvc repro -f merge`")
    gguf_names = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in found}
    if unknown := [name for name, gguf_name in gguf_names.items() if not gguf_name]:
        raise UserError(*(f"{merged}: tensor {name} has no place in GGUF's {architecture.name}" for name in unknown))
    return {gguf_names[name]: tensor for name, tensor in found.items()}


def _write_tensors(writer: GGUFWriter, tensors: dict[str, Stored], file_type: str) -> None:
    """Write the header, then the tensors with one in memory at a time."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from safetensors import safe_open
    from tqdm import tqdm

    for name, tensor in tensors.items():
        kind = GGMLQuantizationType[_type(tensor, file_type)]
        size = math.prod(tensor.shape) * GGML_QUANT_SIZES[kind][1]
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tqdm(tensors.values(), desc=file_type, unit="tensor", disable=None):
        with safe_open(tensor.file, framework="pt") as file:
            writer.write_tensor_data(_array(tensor.name, file.get_tensor(tensor.name), _type(tensor, file_type)))


def _type(tensor: Stored, file_type: str) -> str:
    return file_type if len(tensor.shape) > 1 else "F32"


def _array(name: str, values: torch.Tensor, kind: str) -> np.ndarray:
    """Return a tensor's values in a type, BF16 as raw 16 bits; raise UserError where F16 would turn them infinite."""
    import torch

    cast = values.to(getattr(torch, MATRIX_TYPES[kind])).contiguous()
    lost = ~torch.isfinite(cast) & torch.isfinite(values)
    if lost.any():
        raise UserError(
            f"{name}: {int(lost.sum())} of {values.numel()} weights lie beyond {kind}'s range (largest "
            f"{values.abs().max().item():.4g}) and would become infinite; take an encoding with `file_type: BF16`"
        )
    return (cast.view(torch.int16) if kind == "BF16" else cast).numpy()
