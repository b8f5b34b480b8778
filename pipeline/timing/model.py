"""A model made for timing: random weights of a recipe's shape, in GGUF encodings, kept until the recipe changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline import io, models
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.quant import gguf
from pipeline.quant import recipe as encodings
from pipeline.quant.job import Job

log = logging.getLogger(__name__)

FOLDER = Path("artifacts/speed")
MADE_FROM = "made_from.json"
FINETUNE = "untrained"  # the middle of the file names
NO_DATASET = {"name": "none", "repo": None}


def provide(name: str, encoding: str, params: Params) -> Path:
    """Return the GGUF file of a model in an encoding; make it, and first the model, unless they are there already.

    Raises UserError for an encoding that is no GGUF.
    """
    model, seed = models.read(name), params.runtime.seed
    quantised = encodings.read(encoding)
    if quantised.family != "gguf":
        raise UserError(f"--encodings: {encoding} is a {quantised.family} format; llama.cpp runs GGUF alone, take Q4_0")
    made_from = {"model": model.model_dump(mode="json"), "seed": seed}
    base, made = FOLDER / name / "base", FOLDER / name / encoding
    _kept(base, made_from, lambda out: models.provide(model, out, seed))

    def export(out: Path) -> None:
        untrained = params.quantize.model_copy(update={"finetune": FINETUNE})
        own = params.model_copy(update={"quantize": untrained})
        gguf.make(Job(encoding, quantised, model, own, base, Path(), NO_DATASET, out))

    _kept(made, made_from | {"encoding": quantised.model_dump(mode="json")}, export)
    return next(made.glob("*.gguf"))


def _kept(folder: Path, made_from: dict, make: Callable[[Path], None]) -> None:
    """Fill a folder anew unless it was made from the same."""
    note = folder / MADE_FROM
    if note.is_file() and io.read_json(note) == made_from:
        return
    log.info("speed: making %s", folder)
    with io.atomic_dir(folder) as out:
        make(out)
        io.write_json(out / MADE_FROM, made_from)
