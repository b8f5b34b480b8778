"""Base models: every source gives a complete directory or a clear error."""

from __future__ import annotations

import pytest

from pipeline import models, prompts, recipes
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


def random_recipe(tokenizer, **changes) -> ModelRecipe:
    return ModelRecipe(source="random", config=TINY_SHAPE | changes, tokenizer=str(tokenizer), **NAMING)


def test_random_weights_have_the_shape_and_repeat(tiny_model_dir, tmp_path):
    weights = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        (tmp_path / name).mkdir()
        models.provide(random_recipe(tiny_model_dir), tmp_path / name, seed=seed)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_random_model_is_a_complete_one_and_says_what_it_is(tiny_model_dir, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    state = torch.random.get_rng_state()
    models.provide(random_recipe(tiny_model_dir, vocab_size=640), tmp_path, seed=7)
    assert (torch.random.get_rng_state() == state).all()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    embedding = model.get_input_embeddings().weight
    assert embedding.shape == (640, 64)
    assert embedding.float().std().item() == pytest.approx(0.02, rel=0.05)
    assert model.config.eos_token_id == prompts.load_tokenizer(tmp_path).eos_token_id is not None
    assert "weights are random" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match=r"vocab_size: 300 .* write at least as many"):
        models.provide(random_recipe(tiny_model_dir, vocab_size=300), tmp_path, seed=0)


def test_the_random_recipe_has_the_shape_of_qwen3_0_6b(monkeypatch):
    """596,049,920 parameters, as the published model has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    monkeypatch.chdir(ROOT)
    recipe = models.read("Qwen3-0.6B-random")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**recipe.config))
    assert model.num_parameters() == 596_049_920
    assert model.config.max_position_embeddings == 40960
    assert model.config.rope_parameters["rope_theta"] == 1e6


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
