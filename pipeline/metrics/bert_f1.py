"""BERT-F1 of answers against references, by bert-score (Zhang et al., 2020) with the scorer that a recipe names."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from pipeline import io, recipes
from pipeline.errors import UserError
from pipeline.metrics import uncertainty
from pipeline.metrics.measure import measure
from pipeline.schema import Section

if TYPE_CHECKING:
    from bert_score import BERTScorer

OFFLINE = "-S evaluate.scorer=nano-bert"
HUB_FILES = ["config.json", "model.safetensors", "tokenizer*", "vocab.txt"]
WANTED = ("config.json", "model.safetensors", "tokenizer_config.json")
PAIRS = 32  # scored at once; texts of like length stand together, so little is padding


class ScorerRecipe(Section):
    """A scorer: an encoder, the hidden layer whose vectors are matched, and the baseline to rescale by."""

    summary: str  # one line, as `python -m pipeline list` prints it
    model: str  # a directory, or owner/name on the hub
    revision: str | None = None  # a commit, for the hub
    layer: Annotated[int, Field(gt=0)]
    lang: str
    baseline: str | None = None  # CSV with LAYER,P,R,F; null: the one bert-score ships for lang and model
    license: str


def read(name: str) -> ScorerRecipe:
    """Read recipes/scorers/<name>.yaml."""
    return recipes.read("scorers", name, ScorerRecipe)


def problems(recipe: ScorerRecipe) -> Iterator[str]:
    """Yield what a scorer in a directory lacks; one on the hub is checked when it is fetched."""
    if recipe.revision is None:
        files = [Path(recipe.model) / name for name in WANTED]
        files += [Path(recipe.baseline)] if recipe.baseline else []
        missing = (file for file in files if not file.is_file())
        yield from (f"{file}: missing, and the scorer needs it; restore it with `git checkout`" for file in missing)


def locate(recipe: ScorerRecipe) -> tuple[Path, Path]:
    """Return the scorer's directory and its baseline file, fetched from the hub where the recipe says so."""
    if found := list(problems(recipe)):
        raise UserError(*found)
    directory = Path(recipe.model) if recipe.revision is None else _fetched(recipe)
    return directory, Path(recipe.baseline) if recipe.baseline else _shipped_baseline(recipe)


def open_scorer(recipe: ScorerRecipe) -> BERTScorer:
    """Load the scorer on the CPU."""
    from bert_score import BERTScorer

    directory, baseline = locate(recipe)
    scorer = BERTScorer(
        str(directory), recipe.layer, batch_size=2 * PAIRS, device="cpu", lang=recipe.lang, baseline_path=str(baseline)
    )
    longest = scorer._model.config.max_position_embeddings
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, longest)
    return scorer


def identity(name: str, recipe: ScorerRecipe) -> dict:
    """Return what tells one scorer from another: name, layer, baseline F1, and the checksum of its weights."""
    directory, baseline = locate(recipe)
    return {
        "name": name,
        "model": recipe.model,
        "revision": recipe.revision,
        "layer": recipe.layer,
        "baseline_f1": round(baseline_f1(baseline, recipe.layer), 6),
        "sha256": io.sha256(directory / "model.safetensors"),
    }


def baseline_f1(baseline: str | Path, layer: int) -> float:
    """Return the F1 of unrelated texts at a layer, from a CSV with the header LAYER,P,R,F."""
    with Path(baseline).open(encoding="utf-8", newline="") as file:
        return next(float(row["F"]) for row in csv.DictReader(file) if int(row["LAYER"]) == layer)


def scores(scorer: BERTScorer, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Return the raw F1 of each candidate against its reference, float64 [n]; an empty text scores 0."""
    f1 = np.zeros(len(candidates))
    full = [i for i, pair in enumerate(zip(candidates, references, strict=True)) if all(text.strip() for text in pair)]
    full.sort(key=lambda i: max(len(candidates[i]), len(references[i])))
    for start in range(0, len(full), PAIRS):
        chunk = full[start : start + PAIRS]
        f1[chunk] = scorer.score([candidates[i] for i in chunk], [references[i] for i in chunk])[2].numpy()
    return f1


def measures(f1: np.ndarray, baseline: float, seed: int) -> dict:
    """Return the mean F1 over dialogues, raw and rescaled as (F1 - baseline) / (1 - baseline)."""
    return {
        "bert_f1": uncertainty.mean_measure(f1, seed, better="higher"),
        "bert_f1_rescaled": uncertainty.mean_measure((f1 - baseline) / (1 - baseline), seed, better="higher"),
    }


def shuffled(scorer: BERTScorer, candidates: Sequence[str], references: Sequence[str], seed: int) -> dict:
    """Return the mean raw F1 of each candidate against another dialogue's reference: what no relation scores."""
    if len(references) < 2:
        return measure(float("nan"), n=0)
    order = uncertainty.derangement(len(references), seed)
    return uncertainty.mean_measure(scores(scorer, candidates, [references[i] for i in order]), seed)


def _fetched(recipe: ScorerRecipe) -> Path:
    from huggingface_hub import snapshot_download

    from pipeline.hub import reported

    with reported(f"{recipe.model}@{recipe.revision}", offline=OFFLINE):
        return Path(snapshot_download(recipe.model, revision=recipe.revision, allow_patterns=HUB_FILES))


def _shipped_baseline(recipe: ScorerRecipe) -> Path:
    import bert_score

    folder = Path(bert_score.__file__).parent / "rescale_baseline" / recipe.lang
    return folder / f"{recipe.model.split('/')[-1]}.tsv"
