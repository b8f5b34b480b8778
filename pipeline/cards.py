"""cards: the model card of every artifact with what was measured of it, to artifacts/cards/<artifact>/README.md.

The artifacts are outputs of earlier stages, made before anything could be measured, and DVC lets no later stage change
them. So the cards lie apart; ``python -m pipeline publish`` puts artifact and card together.
"""

from __future__ import annotations

import logging

from pipeline import io, stage
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.reporting.cards import CARD, CARDS, artifacts, card
from pipeline.reporting.load import load

log = logging.getLogger(__name__)


def main(params: Params) -> None:
    """Read the artifacts' own cards and the JSON in eval/; write a card for each artifact, all or none.

    Not timed: eval/timings is one of its inputs.
    """
    results = load(params)
    made = artifacts(params)
    if missing := [str(folder) for folder in made.values() if not (folder / CARD).is_file()]:
        raise UserError(*(f"{folder}/{CARD}: missing; run `dvc repro`" for folder in missing))
    with io.atomic_dir(CARDS) as out:
        for name, folder in made.items():
            own = (folder / CARD).read_text(encoding="utf-8")
            io.write_text(out / name / CARD, card(results, name, own))
    log.info("cards: %d in %s", len(made), CARDS)


if __name__ == "__main__":
    stage.run(main)
