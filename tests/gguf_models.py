"""GGUF files of the tiny model, made once a session by the pipeline's own export."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pipeline.engines.llama import library
from pipeline.quant import gguf
from pipeline.quant.recipe import GgufRecipe

from .quantizing import job


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model_dir, params, tmp_path_factory):
    """A function that returns the path of the tiny model in a GGUF file type."""
    folder = tmp_path_factory.mktemp("tiny-gguf")

    @cache
    def make(file_type: str) -> Path:
        recipe = GgufRecipe(family="gguf", file_type=file_type, summary="a test")
        task = job(tiny_model_dir, params, recipe, folder / file_type, [], encoding=file_type)
        gguf.make(task)
        return task.out / f"{task.name}.gguf"

    return make


@pytest.fixture(scope="session")
def model(tiny_gguf):
    """The tiny model loaded by llama.cpp, F32."""
    with library.loaded(tiny_gguf("F32")) as loaded:
        yield loaded
