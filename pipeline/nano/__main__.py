"""`python -m pipeline.nano VERB`: make the embedded models anew from a corpus folder, step by step or all at once."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path

from pipeline import schema
from pipeline.errors import UserError
from pipeline.nano import recipe as recipes

VERBS = {
    "corpus": "read the corpus folder and hold documents out",
    "tokenizer": "train the byte-level BPE",
    "pretrain": "train the base model; goes on from its last checkpoint",
    "export": "write the base model as transformers reads it",
    "scorer": "train the BERT that scores answers",
    "evaluate": "measure the shipped base against its bounds",
    "card": "write the model card",
}
NEEDS_FOLDER = {"corpus", "scorer"}


def main() -> int:
    """Run one verb, or every one in turn."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.nano", description=__doc__)
    parser.add_argument("verb", choices=[*VERBS, "all"], help="; ".join(f"{k}: {v}" for k, v in VERBS.items()))
    parser.add_argument("--corpus", type=Path, help="folder that holds the files named in recipe.yaml")
    parser.add_argument("--recipe", type=Path, default=recipes.PATH, help="another recipe")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        recipe = recipes.load(options.recipe)
        for verb in VERBS if options.verb == "all" else [options.verb]:
            run(verb, recipe, options.corpus)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def run(verb: str, recipe: dict, folder: Path | None) -> None:
    """Run one verb: the main function of the module of its name."""
    if verb in NEEDS_FOLDER and folder is None:
        raise UserError(f"{verb}: --corpus is missing; give the folder that holds the files named in recipe.yaml")
    module = importlib.import_module(f"pipeline.nano.{verb}")
    settings = schema.read(module.RECIPE, module.Recipe) if verb == "scorer" else recipe  # scorer.yaml is its own
    module.main(settings, *([folder] if verb in NEEDS_FOLDER else []))


if __name__ == "__main__":
    sys.exit(main())
