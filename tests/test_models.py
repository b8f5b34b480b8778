"""Base models: every source gives a complete directory or a clear error."""

from __future__ import annotations

import pytest

from pipeline import models, recipes
from pipeline.errors import ConfigError, UserError
from pipeline.models import ModelRecipe
from tests.conftest import ROOT

NAMING = {"basename": "Tiny", "size_label": "1M", "license": "apache-2.0", "languages": ["zh"], "summary": "s"}
TINY_SHAPE = {
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def test_every_recipe_reads(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert {models.read(name).basename for name in recipes.names("models")} >= {"PeakChat", "Qwen3"}


def test_a_local_model_is_copied_without_pickles(tiny_model_dir, tmp_path):
    (tmp_path / "out").mkdir()
    recipe = ModelRecipe(source="local", path=str(tiny_model_dir), **NAMING)
    (tiny_model_dir / "pytorch_model.bin").write_bytes(b"pickle")
    models.provide(recipe, tmp_path / "out", seed=0)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "pytorch_model.bin" not in names


def test_random_weights_have_the_shape_and_repeat(tiny_model_dir, tmp_path):
    recipe = ModelRecipe(source="random", config=TINY_SHAPE, tokenizer=str(tiny_model_dir), **NAMING)
    weights = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        models.provide(recipe, tmp_path / name, seed=7)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_everything_a_directory_lacks_is_told_at_once(tmp_path):
    with pytest.raises(UserError) as error:
        models.check(tmp_path, origin="somewhere")
    assert len(error.value.problems) == 3
    assert all("somewhere" in problem for problem in error.value.problems)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(UserError, match="no such model directory"):
        models.provide(ModelRecipe(source="local", path=str(tmp_path / "x"), **NAMING), tmp_path, seed=0)


def test_a_source_needs_its_own_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes/models").mkdir(parents=True)
    (tmp_path / "recipes/models/x.yaml").write_text(
        "source: hub\nbasename: X\nsize_label: 1M\nlicense: mit\nlanguages: [zh]\nsummary: s\n"
    )
    with pytest.raises(ConfigError, match="source 'hub' needs repo and revision"):
        models.read("x")
