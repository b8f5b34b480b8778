"""FP8 and GPTQ exports of a tiny model: schemes, calibration rows, group sizes and what is on disk."""

from __future__ import annotations

import pytest
import yaml

from pipeline import io, prompts
from pipeline.errors import UserError
from pipeline.quant import compressed, weights
from pipeline.quant.recipe import CompressedRecipe

from .quantizing import job, random_model


def recipe(**changes) -> CompressedRecipe:
    settings = {
        "family": "compressed",
        "modifier": "gptq",
        "scheme": "W4A16",
        "ignore": ("lm_head",),
        "summary": "test",
    }
    return CompressedRecipe(**settings | {"dampening": 0.01} | changes)


ROUNDED = {"modifier": "quantization", "dampening": None}


@pytest.fixture
def task(params, tiny_model_dir, tmp_path, dialogues):
    """A function that returns a job of a recipe with a calibration of ``tokens`` tokens a dialogue."""

    def build(recipe, merged=tiny_model_dir, name="out", tokens=48):
        section = params.quantize.model_copy(update={"calibration_dialogues": 3, "calibration_tokens": tokens})
        runtime = params.runtime.model_copy(update={"threads": 1})  # more only get into each other's way here
        settings = params.model_copy(update={"quantize": section, "runtime": runtime})
        return job(merged, settings, recipe, tmp_path / name / "model", dialogues)

    return build


def test_group_sizes_that_do_not_divide_are_named_before_any_work(task, tmp_path, tiny_model_dir, monkeypatch):
    narrow = random_model(tmp_path / "narrow", tiny_model_dir, hidden_size=192)
    monkeypatch.setattr(compressed, "_load", lambda directory: pytest.fail("weights were loaded"))
    with pytest.raises(UserError) as error:
        compressed.make(task(recipe(group_size=128), merged=narrow))
    assert len(error.value.problems) == 5  # q, k, v, gate and up read the narrow stream
    assert "group_size: 128 does not divide the 192 inputs of q_proj" in str(error.value)
    assert "such as 96" in str(error.value)


def test_an_ignored_module_needs_no_fitting_group(task, tmp_path, tiny_model_dir):
    narrow = random_model(tmp_path / "narrow", tiny_model_dir, hidden_size=192)
    ignored = ["lm_head", "re:.*(q|k|v|gate|up)_proj"]
    export = compressed.make(task(recipe(group_size=128, ignore=ignored), merged=narrow))
    assert export.tensor_types["I32"] == 4  # o_proj and down_proj of two layers


def test_an_unknown_scheme_gets_a_hint(task):
    with pytest.raises(UserError, match=r"scheme: compressed-tensors has no 'W4A61'; did you mean 'W4A16'"):
        compressed.make(task(recipe(scheme="W4A61")))


def test_smaller_groups_store_more_scales(task):
    bits = [compressed.make(task(recipe(group_size=size), name=f"g{size}")).bits for size in (128, 32)]
    assert bits[0] < bits[1]


def test_packed_w4a8_is_smaller_than_the_schemes_own_format(task):
    packed, plain = (
        compressed.make(task(recipe(scheme="W4A8", format=form), name=f"{form}")) for form in ("pack-quantized", None)
    )
    assert packed.bits < plain.bits
    assert "I8" not in packed.tensor_types


def test_w8a8_is_one_more_recipe(task):
    export = compressed.make(task(recipe(scheme="W8A8", **ROUNDED)))
    assert export.tensor_types["I8"] == 14  # seven projections in two layers


def test_what_is_on_disk_is_what_users_load(task):
    made = task(recipe())
    compressed.make(made)
    config = io.read_json(made.out / "config.json")["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    assert "lm_head" in config["ignore"]
    modifiers = yaml.safe_load((made.out / "recipe.yaml").read_text())["default_stage"]["default_modifiers"]
    assert modifiers["GPTQModifier"]["dampening_frac"] == 0.01
    assert (made.out / "chat_template.jinja").read_text().rstrip("\n") == prompts.template()
    assert str(made.out.parent) not in "".join(file.read_text() for file in made.out.glob("*.json"))


@pytest.mark.parametrize("settings", [{}, {"scheme": "W4A8", "format": "pack-quantized"}, ROUNDED])
@pytest.mark.parametrize("has", [True, False])
def test_calibration_in_another_type_stores_the_models_own(task, tmp_path, tiny_model_dir, monkeypatch, settings, has):
    monkeypatch.setattr(compressed.runtime, "has_bf16", lambda: has)
    made = compressed.make(task(recipe(**settings), random_model(tmp_path / "bf16", tiny_model_dir)))
    assert made.checks["reload_diff"]["value"] == 0
    assert set(made.tensor_types) == {"BF16", "I32", "I64"}


def test_gptq_repeats_bit_for_bit(task):
    digests = set()
    for name in ("one", "two"):
        made = task(recipe(), name=name)
        compressed.make(made)
        digests.add(io.sha256(made.out / "model.safetensors"))
    assert len(digests) == 1


def test_gptq_learns_from_its_calibration(task):
    digests = set()
    for settings in ({}, ROUNDED):
        made = task(recipe(**settings), name=f"out{len(digests)}")
        compressed.make(made)
        digests.add(io.sha256(made.out / "model.safetensors"))
    assert len(digests) == 2


def test_calibration_sees_whole_dialogues_as_training_renders_them(task, tokenizer, dialogues):
    rows = compressed.calibration_rows(tokenizer, task(recipe(), tokens=10_000))["input_ids"]
    examples = [prompts.example_ids(tokenizer, dialogue["messages"]) for dialogue in dialogues]
    expected = [prompt + answer for prompt, answer in examples]
    assert sorted(rows) == sorted(expected)


def test_calibration_rows_are_cut(task, tokenizer):
    assert {len(row) for row in compressed.calibration_rows(tokenizer, task(recipe(), tokens=7))["input_ids"]} == {7}


def test_an_export_that_changed_on_its_way_to_disk_is_refused(task, monkeypatch):
    load = compressed._load

    def spoilt(directory):
        model = load(directory)
        model.model.norm.weight.data += 1.0 if "out" in str(directory) else 0.0
        return model

    monkeypatch.setattr(compressed, "_load", spoilt)
    with pytest.raises(UserError, match="loaded from disk its logits differ"):
        compressed.make(task(recipe(scheme="FP8_DYNAMIC", **ROUNDED)))


def test_weights_are_counted_from_headers_alone(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    assert weights.count_parameters(tiny_model_dir) == sum(p.numel() for p in model.parameters())
