"""Merging: the merged directory is complete and faithful to the adapter, and a merge that is not fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import io, merge, prompts
from pipeline.errors import UserError
from pipeline.sft import adapter
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def params(params):
    """One thread: more only wait for one another on a model this small."""
    return params.model_copy(update={"runtime": params.runtime.model_copy(update={"threads": 1})})


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory, tiny_model_dir, tokenizer, params) -> Path:
    """An adapter with random, clearly non-zero weights."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(merge.load(tiny_model_dir), config)
    directory = tmp_path_factory.mktemp("adapter")
    adapter.save(model, tokenizer, params, directory)
    return directory


@pytest.fixture
def workspace(tmp_path, tiny_model_dir, adapter_dir, dialogues, monkeypatch) -> Path:
    """A repository root that holds what merge reads, as the current directory."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / merge.BASE).symlink_to(tiny_model_dir)
    (tmp_path / merge.ADAPTER).symlink_to(adapter_dir)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    io.write_jsonl(tmp_path / merge.VALIDATION, dialogues)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def limited(params, **values):
    """Return the parameters with some keys of merge changed."""
    return params.model_copy(update={"merge": params.merge.model_copy(update=values)})


@pytest.mark.parametrize(
    ("dtype", "size", "largest", "kld"),
    [("float32", 4, 1e-4, 1e-8), ("float16", 2, 1e-1, 1e-4), ("bfloat16", 2, 1, 1e-2)],
)
def test_the_merged_model_answers_as_the_adapter_does(workspace, params, tokenizer, dtype, size, largest, kld):
    from peft import PeftModel
    from safetensors import safe_open

    merge.main(limited(params, dtype=dtype, max_logit_diff=largest, max_kld=kld))
    result = io.read_json(merge.RESULT)
    ids = merge.validation_ids(tokenizer)
    assert result["dialogues"] == 3
    assert result["tokens"] == result["reloaded"]["kld"]["n"] == sum(map(len, ids))
    assert result["in_memory"]["max_logit_diff"]["value"] < 1e-4

    base, merged = merge.load(merge.BASE), merge.load(merge.MERGED)
    adapted = PeftModel.from_pretrained(merge.load(merge.BASE), merge.ADAPTER).eval()
    expected, got = merge.logits(adapted, ids[0]), merge.logits(merged, ids[0])
    assert np.abs(expected - got).max() <= result["reloaded"]["max_logit_diff"]["value"] * (1 + 1e-5)
    assert np.abs(expected - merge.logits(base, ids[0])).max() > 10 * np.abs(expected - got).max()
    with safe_open(merge.MERGED / "model.safetensors", "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {f"{'B' * (dtype[0] == 'b')}F{8 * size}"}  # noqa: SIM118


def test_the_directory_is_what_others_expect(workspace, params, tokenizer):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge.main(limited(params, max_logit_diff=10.0, max_kld=1.0))
    model = AutoModelForCausalLM.from_pretrained(merge.MERGED)
    reread = AutoTokenizer.from_pretrained(merge.MERGED)
    stop = prompts.end_of_turn_id(tokenizer)
    assert model.config.use_cache
    assert str(model.dtype) == "torch.bfloat16"
    assert model.config.eos_token_id == reread.eos_token_id == stop
    assert model.generation_config.eos_token_id == [stop, reread.convert_tokens_to_ids("<|endoftext|>")]
    assert (merge.MERGED / "chat_template.jinja").read_text() == prompts.template()
    front = yaml.safe_load((merge.MERGED / "README.md").read_text().split("---")[1])
    assert (front["base_model"], front["base_model_relation"]) == (params.model, "finetune")
    text = "".join(path.read_text() for path in merge.MERGED.iterdir() if path.suffix != ".safetensors")
    assert str(workspace) not in text


def test_a_merge_beyond_its_limits_leaves_nothing(workspace, params):
    with pytest.raises(UserError) as error:
        merge.main(limited(params, max_logit_diff=1e-9, max_kld=1e-15))
    text = "\n".join(error.value.problems)
    assert "merge.max_logit_diff" in text
    assert "merge.max_kld" in text
    assert "reloaded" in text
    assert not merge.MERGED.exists()
    assert not merge.RESULT.exists()
    assert [path.name for path in merge.MERGED.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("value", "fails"), [(0.4, False), (0.6, True), ("nan", True), ("inf", True)])
def test_limits_hold_for_every_value(params, value, fails):
    found = {"in_memory": {"max_logit_diff": {"value": value}, "kld": {"value": 0.0}}}
    limits = limited(params, max_logit_diff=0.5).merge
    if not fails:
        merge.check(found, limits)
        return
    with pytest.raises(UserError, match=r"merge\.max_logit_diff.*in memory"):
        merge.check(found, limits)


def test_a_model_with_broken_weights_is_found(workspace, params, tokenizer):
    import torch

    good, bad = merge.load(merge.BASE), merge.load(merge.BASE)
    with torch.no_grad():
        bad.model.norm.weight[0] = torch.nan
    found = {"reloaded": merge.compare(good, bad, merge.validation_ids(tokenizer))}
    with pytest.raises(UserError):
        merge.check(found, params.merge)


def test_all_that_is_missing_is_named_at_once(workspace, params):
    merge.BASE.unlink()
    merge.ADAPTER.unlink()
    merge.VALIDATION.write_text("")
    with pytest.raises(UserError) as error:
        merge.main(params)
    makers = [problem.rsplit(" ", 1)[-1].rstrip("`") for problem in error.value.problems]
    assert makers == ["base", "train", "convert"]
