"""GGUF files of the tiny model, made once a session by the pipeline's own export."""

from __future__ import annotations

import pytest

from pipeline.engines.llama import library

from .quantizing import gguf_files


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model_dir, params, tmp_path_factory):
    """A function that returns the path of the tiny model in a GGUF file type."""
    return gguf_files(tiny_model_dir, params, tmp_path_factory.mktemp("tiny-gguf"))


@pytest.fixture(scope="session")
def model(tiny_gguf):
    """The tiny model loaded by llama.cpp, F32."""
    with library.loaded(tiny_gguf("F32")) as loaded:
        yield loaded
