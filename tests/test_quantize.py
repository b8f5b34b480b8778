"""The quantize stage on a tiny model: every recipe of the repository, its JSON, and exports that must be refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pipeline import io, quantize, recipes
from pipeline.errors import ConfigError, UserError
from pipeline.quant import recipe, sample, verify
from pipeline.quant.job import Export

from .conftest import ROOT
from .quantizing import SOURCE, job

ENCODINGS = sorted(path.stem for path in (ROOT / "recipes/quantize").glob("*.yaml"))


@pytest.fixture(scope="module")
def small(params):
    """The real parameters, with a calibration that takes no time."""
    section = params.quantize.model_copy(update={"calibration_dialogues": 3, "calibration_tokens": 48})
    runtime = params.runtime.model_copy(update={"threads": 1})
    return params.model_copy(update={"quantize": section, "runtime": runtime})


@pytest.fixture
def workspace(tmp_path, monkeypatch, tiny_model_dir, dialogues):
    """A directory like the repository's, where the stage finds its inputs and leaves its outs."""
    for name, target in {"recipes": ROOT / "recipes", "artifacts/merged": tiny_model_dir}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    io.write_jsonl(tmp_path / "data/chat/train.jsonl", dialogues)
    io.write_json(tmp_path / "data/raw/source.json", SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_recipe_makes_a_verified_export(encoding, workspace, small, dialogues):
    quantize.main(small, encoding)

    out = workspace / "artifacts/quantized" / encoding
    result = io.read_json(f"eval/quantize/{encoding}.json")
    assert result["encoding"] == encoding
    assert result["parity"]["dialogues"] == len(dialogues)
    assert result["parity"]["mismatches"]["value"] == 0
    assert math.isfinite(result["logits"]["max_diff"]["value"])
    assert result["logits"]["argmax_agreement"]["n"] == result["logits"]["max_diff"]["n"] > 20
    assert {file["name"]: file["sha256"] for file in result["files"]} == {f.name: io.sha256(f) for f in out.iterdir()}
    assert sorted(p.name for p in out.parent.iterdir()) == [encoding]  # nothing half-written beside it
    weights = sum(f.stat().st_size for pattern in ("*.gguf", "*.safetensors") for f in out.glob(pattern))
    stored = result["bits_per_weight"]["value"] * result["parameters"] / 8
    assert stored < weights < stored + 100_000  # the rest is header and tokenizer
    assert (workspace / f"eval/timings/quantize@{encoding}.json").is_file()
    assert "not medical advice" in (out / "README.md").read_text()


def test_fewer_bits_are_smaller_and_less_exact(workspace, small):
    names = ["F16", "Q8_0", "Q4_0"]
    for name in names:
        quantize.main(small, name)
    results = [io.read_json(f"eval/quantize/{name}.json") for name in names]
    bits = [result["bits_per_weight"]["value"] for result in results]
    differences = [result["logits"]["max_diff"]["value"] for result in results]
    assert bits == sorted(bits, reverse=True)
    assert differences == sorted(differences)


def test_an_unquantised_export_beyond_the_limit_is_refused_and_leaves_nothing(workspace, small):
    section = small.quantize.model_copy(update={"max_logit_diff": 1e-9})
    with pytest.raises(UserError, match=r"quantize\.max_logit_diff allows 1e-09"):
        quantize.main(small.model_copy(update={"quantize": section}), "F16")
    assert not list(Path("artifacts/quantized").iterdir())
    assert not Path("eval").exists()


@pytest.mark.parametrize("stage_file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_an_incomplete_merged_model_is_named(stage_file, workspace, small, tiny_model_dir):
    Path("artifacts/merged").unlink()
    Path("artifacts/merged").mkdir()
    for file in tiny_model_dir.iterdir():
        if not file.name.startswith(stage_file.split(".")[0]):
            (Path("artifacts/merged") / file.name).symlink_to(file)
    with pytest.raises(UserError, match="artifacts/merged: the model directory has no"):
        quantize.main(small, "F16")


def broken(ids=None, logits=None) -> Export:
    return Export(8, {}, chat_ids=ids, logits=logits, usage="", library="")


def test_a_token_that_differs_is_shown(small, tiny_model_dir, tmp_path, dialogues, tokenizer):
    def wrong(messages, answer_follows):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=answer_follows, return_dict=False)
        return [*ids[:-2], ids[-2] + 1, ids[-1]] if len(messages) == 4 else ids

    task = job(tiny_model_dir, small, recipe.read("F16"), tmp_path / "out", dialogues)
    with pytest.raises(UserError, match=r"token ids of 1 of 3 training dialogues .* first d1: at token \d+: expected"):
        verify.parity(task, broken(ids=wrong))


def test_a_missing_token_is_a_difference(small, tiny_model_dir, tmp_path, dialogues, tokenizer):
    def short(messages, answer_follows):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=answer_follows, return_dict=False)[:-1]

    task = job(tiny_model_dir, small, recipe.read("F16"), tmp_path / "out", dialogues)
    with pytest.raises(UserError, match="token ids of 3 of 3"):
        verify.parity(task, broken(ids=short))


def test_logits_that_are_not_finite_are_refused(small, tiny_model_dir, tmp_path, dialogues):
    def burst(ids):
        logits = verify.reference(tiny_model_dir, ids)
        logits[3, 7] = math.nan
        return logits

    task = job(tiny_model_dir, small, recipe.read("Q4_0"), tmp_path / "out", dialogues)
    with pytest.raises(UserError, match="not all logits"):
        verify.logits(task, broken(logits=burst))


def test_the_sample_is_seeded_and_of_the_asked_size(tmp_path):
    path = tmp_path / "train.jsonl"
    io.write_jsonl(path, ({"id": str(i)} for i in range(50)))
    first, again, other = (sample.dialogues(path, 20, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({dialogue["id"] for dialogue in first}) == 20
    assert len(sample.dialogues(path, 99, 1)) == 50


def test_no_dialogues_is_an_error(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError, match="no dialogues"):
        sample.dialogues(tmp_path / "train.jsonl", 3, 0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("family: ggml\nsummary: x\n", "family"),
        ("family: gguf\nsummary: x\nfiletype: F16\n", "did you mean 'file_type'"),
        ("family: gguf\nsummary: x\n", "file_type: missing"),
        ("family: compressed\nmodifier: gptq\nscheme: W4A16\nignore: []\nsummary: x\n", "needs dampening"),
        ("family: compressed\nmodifier: awq\nscheme: W4A16\nignore: []\nsummary: x\n", "modifier"),
    ],
)
def test_a_recipe_that_does_not_fit_is_explained(text, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "ROOT", tmp_path)
    (tmp_path / "quantize").mkdir()
    (tmp_path / "quantize/mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        recipe.read("mine")
