"""How the embedded scorer was made: `python -m pipeline.nano.scorer --corpus FOLDER` trains, proves and ships it.

Reads scorer.yaml beside it and the texts below the corpus folder; writes data/embedded/scorer: weights, tokenizer,
baseline.csv, training.jsonl, bounds.json and README.md. With --evaluate it only proves the shipped scorer again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline import io, schema, stage
from pipeline.metrics import bert_f1
from pipeline.schema import Section

log = logging.getLogger(__name__)

RECIPE = Path(__file__).with_name("scorer.yaml")
CARD = Path(__file__).with_name("scorer_card.md")
SCORER = "nano-bert"  # recipes/scorers/: names the layer
DIALOGUES = Path("data/embedded/dialogues")
LAYER_PAIRS = 150
NESTED = ("f1_by_deleted_share",)  # a table of its own in bounds.json
Positive = Annotated[float, Field(gt=0)]


class Train(Section):
    """Training of the scorer."""

    steps: int
    pairs: int
    tokens: int
    masked: Positive
    contrast_layer: int
    contrast_weight: Positive
    temperature: Positive
    muon: Positive
    adamw: Positive
    warmup: int


class Recipe(Section):
    """scorer.yaml."""

    seed: int
    threads: Annotated[int, Field(gt=0)]
    output: str
    held_out_percent: int
    dialogues: tuple[str, ...]
    classics: tuple[str, ...]
    model: dict[str, int]
    train: Train


def main(nano: dict, folder: Path, evaluate: bool = False) -> dict:
    """Train the scorer on the texts of a corpus folder, unless only to ``evaluate``; return its bounds.

    ``nano`` is the recipe of all nano models, whose key ``scorer`` may name another file than scorer.yaml.
    """
    from pipeline.nano import scorer_text

    recipe = schema.read(nano.get("scorer", RECIPE), Recipe)
    pairs = scorer_text.pairs(folder, recipe.dialogues)
    train, validation, test = scorer_text.split(pairs, recipe.held_out_percent)
    log.info("%d pairs to train on, %d to choose the layer, %d for proof", len(train), len(validation), len(test))
    output = Path(recipe.output)
    if not evaluate:
        make(recipe, output, train, scorer_text.classics(folder, recipe.classics), validation)
    bounds = prove(recipe, output, {"consultations": test} | embedded(), validation)
    io.write_json(output / "bounds.json", bounds)
    io.write_text(output / "README.md", card(recipe, bounds))
    return bounds


def make(recipe: Recipe, output: Path, train: list, passages: list[str], validation: list) -> None:
    """Train the scorer and write its directory, with the baseline of every layer."""
    from random import Random

    import torch

    from pipeline.nano import scorer_evaluate, scorer_text, scorer_train

    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    answers = [answer for _, answer in train]
    tokens = scorer_train.vocabulary([*(text for pair in train for text in pair), *passages])
    words = scorer_train.tokenizer(tokens, recipe.model["max_position_embeddings"])
    model = scorer_train.new_model(recipe.model, words, [*answers, *passages])
    pool = [*train, *(("", passage) for passage in passages)]
    batches = scorer_text.batches(pool, recipe.train.pairs, Random(recipe.seed))
    with io.atomic_dir(output) as partial:
        io.write_jsonl(partial / "training.jsonl", scorer_train.train(model, words, batches, recipe.train))
        scorer_train.save(model.bert, words, partial)
        layers = model.config.num_hidden_layers
        table = scorer_evaluate.baseline(partial, layers, [answer for _, answer in validation], recipe.seed)
        io.write_text(partial / "baseline.csv", table)


def prove(recipe: Recipe, output: Path, sets: dict, validation: list) -> dict:
    """Return the bounds of the shipped scorer, and the measures of every layer, by which its layer was chosen."""
    from pipeline.nano import scorer_evaluate

    chosen = bert_f1.read(SCORER)
    layers = {layer: _score(chosen, layer) for layer in range(1, recipe.model["num_hidden_layers"] + 1)}
    compared = validation[:LAYER_PAIRS]
    return {
        "layer": chosen.layer,
        "sha256": io.sha256(output / "model.safetensors"),
        "megabytes": round(io.size_bytes(output / "model.safetensors") / 1e6, 2),
        **scorer_evaluate.prove(layers[chosen.layer], sets, recipe.seed),
        "layers_on_validation": {
            str(layer): scorer_evaluate.of_pairs(score, compared, recipe.seed) for layer, score in layers.items()
        },
    }


def embedded() -> dict[str, list]:
    """Return the test dialogues that the pipeline embeds as held-out pairs, where they exist."""
    from pipeline.nano import scorer_text

    files = sorted(DIALOGUES.glob("*test*.jsonl"))
    return {"embedded_dialogues": scorer_text.pairs(Path(), [str(file) for file in files])} if files else {}


def card(recipe: Recipe, bounds: dict) -> str:
    """Return the README of the scorer: the card's text with the recipe's and the proof's figures."""
    from pipeline.nano.scorer_evaluate import BASELINE_PAIRS

    proofs = {**bounds["held_out"], "hand-written triples": bounds["paraphrases"]}
    plain = [(name, key, value) for name, proof in proofs.items() for key, value in proof.items() if key not in NESTED]
    layers = bounds["layers_on_validation"]
    compared = [key for key in next(iter(layers.values())) if key.startswith("auc")]
    return CARD.read_text(encoding="utf-8").format(
        layers=recipe.model["num_hidden_layers"],
        width=recipe.model["hidden_size"],
        length=recipe.model["max_position_embeddings"],
        steps=recipe.train.steps,
        pairs=recipe.train.pairs,
        seed=recipe.seed,
        held_out_percent=recipe.held_out_percent,
        baseline_pairs=BASELINE_PAIRS,
        layer=bounds["layer"],
        megabytes=bounds["megabytes"],
        rows=_table(plain),
        layer_header=" | ".join(compared),
        layer_rule="|".join("---" for _ in compared),
        layer_rows=_table((layer, *(measured[key] for key in compared)) for layer, measured in layers.items()),
    )


def _table(rows: Iterable[tuple]) -> str:
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)


def _score(recipe: bert_f1.ScorerRecipe, layer: int):
    scorer = bert_f1.open_scorer(recipe.model_copy(update={"layer": layer}))
    return lambda candidates, references: bert_f1.scores(scorer, candidates, references)


def run(argv: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.nano.scorer", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder that holds the files named in scorer.yaml")
    parser.add_argument("--evaluate", action="store_true", help="prove the shipped scorer again, without training")
    args = parser.parse_args(argv)
    stage.start_logging()
    sys.exit(stage.report_errors(lambda: main({}, args.corpus, args.evaluate)))


if __name__ == "__main__":
    run()
