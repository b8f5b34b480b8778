"""Tiny random models for both engines of KV policies, with attention that is far from even; made once a session."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pipeline.config import Runtime
from pipeline.engines.llama.kv import LlamaKvEngine

from .llama_kv_runs import EXACT, LAYERS
from .quantizing import gguf_files, random_model


@pytest.fixture(scope="session")
def kv_model_dir(tiny_model_dir, tmp_path_factory) -> Path:
    """The tiny model with four layers, large weights and keys of uneven length, so that ranks are clear."""
    import torch
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("kv-model")
    changes = {"num_hidden_layers": LAYERS, "layer_types": ["full_attention"] * LAYERS, "initializer_range": 0.08}
    random_model(directory, tiny_model_dir, **changes)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    torch.manual_seed(1)
    for layer in model.model.layers:
        torch.nn.init.uniform_(layer.self_attn.k_norm.weight, 0.4, 1.6)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def kv_gguf(kv_model_dir, params, tmp_path_factory) -> Path:
    """The same weights in a GGUF file, f32."""
    return gguf_files(kv_model_dir, params, tmp_path_factory.mktemp("kv-gguf"))("F32")


@pytest.fixture(scope="session")
def narrow_gguf(tiny_model_dir, params, tmp_path_factory):
    """A function that returns a GGUF file of a model so narrow that thousands of tokens take seconds."""

    @cache
    def make(layers: int) -> Path:
        folder = tmp_path_factory.mktemp("narrow")
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 32}
        depth = {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers, "initializer_range": 0.2}
        model = random_model(folder / "model", tiny_model_dir, **sizes, **depth)
        return gguf_files(model, params, folder)("F32")

    return make


@pytest.fixture(scope="session")
def llama(kv_gguf):
    """The engine of GGUF files on it, without flash attention."""
    with LlamaKvEngine(kv_gguf, threads=1, flash=EXACT) as engine:
        yield engine


@pytest.fixture(scope="session")
def reference(kv_model_dir):
    """The engine of transformers on it."""
    from pipeline.engines.torch.kv import TorchKvEngine

    return TorchKvEngine.open(kv_model_dir, Runtime(seed=0, threads=1))
