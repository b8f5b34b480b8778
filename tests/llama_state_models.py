"""What tests of llama.cpp's KV state share: the tiny model in both libraries, its cache's shape, and tokens."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.llama import library
from pipeline.kv.precision import CacheShape

from .llama_states import MORE, TOKENS


@pytest.fixture(scope="module")
def shape(model) -> CacheShape:
    """What its cache stores."""
    return library.cache_shape(model)


@pytest.fixture(scope="module")
def torch_model(tiny_model_dir):
    """The tiny model in transformers, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ids() -> list[int]:
    """Random tokens: a prompt, and those that follow it."""
    return np.random.default_rng(5).integers(0, 500, TOKENS + MORE).tolist()
