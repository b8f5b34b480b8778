"""speed: what KV-cache policies cost and win on this machine, at Qwen3-0.6B's shape with random weights.

No part of the DAG. Makes the model in artifacts/speed once, times it, and writes eval/bench/speed.json. Quality is not
measured: the weights are random.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import config, io, runtime, stage
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.timing.settings import Settings

log = logging.getLogger(__name__)

RESULT = Path("eval/bench/speed.json")
METHOD = {
    "weights": "random; quality is not measured",
    "tpot_ms": "median over blocks of the mean time of a token, eviction included; policies take turns by blocks",
    "ratio": "medians of block by block ratios",
    "full": "the faster of flash attention off and on",
    "decode": "one prompt for all policies and encodings, prefilled once in the first encoding",
    "prefill": "the computation alone for full KV; contexts, cuts and copies included for all others",
    "rss_before": "the prompt in a full cache and in a copy of it; rss_after: the small cache alone",
    "step": "scores above the same cells, cuts and positions without scores; a cut rarer than blocks is not timed",
}
FULL_KV = {"prefill": "seconds", "decode": "tpot_ms"}  # figure: what is compared


def main(params: Params, settings: Settings) -> dict[str, Any]:
    """Make the model, time it, and return what was written."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from pipeline.benching import machine
    from pipeline.timing import figures, model, trials
    from pipeline.timing.figures import Figures
    from pipeline.timing.record import Record

    paths = {name: model.provide(settings.model, name, params) for name in settings.encodings}
    first, *others = settings.encodings
    with (
        stage.timed("speed"),
        trials.loaded(paths[first], params.runtime.threads) as engines,
        logging_redirect_tqdm(),
        tqdm(total=figures.planned(settings), unit="figure", disable=None) as bar,
    ):
        ids = tokens(settings, engines.on.model, params.runtime.seed)
        record = Record(bar)
        Figures(engines, {name: paths[name] for name in others}, ids, settings, record).all()
    result = {
        "model": {name: path.name for name, path in paths.items()},
        "machine": machine.describe(params.runtime.threads),
        "settings": asdict(settings) | METHOD,
        "fastest": {figure: fastest(record.rows, figure, value) for figure, value in FULL_KV.items()},
        "rows": record.rows,
        "bounds": record.bounds,
    }
    io.write_json(RESULT, result)
    log.info("speed: %d of %d bounds hold; %s", sum(b["holds"] for b in record.bounds), len(record.bounds), RESULT)
    return result


def fastest(rows: Sequence[dict], figure: str, value: str) -> dict[str, Any]:
    """Return the setting of flash attention under which full KV was fastest, where it was timed deepest under both."""
    found = [row for row in rows if (row["figure"], row["policy"]) == (figure, "full")]
    compared = {row["depth"] for row in found if row["flash_attention"] == "off"}
    deepest = [row for row in found if row["depth"] == max(compared)]
    best = min(deepest, key=lambda row: row[value]["value"])
    return {key: best[key] for key in ("flash_attention", "depth", "encoding", value)}


def tokens(settings: Settings, model: Any, seed: int) -> list[int]:
    """Return random ids, as many as the model's context holds; raise UserError if the settings go beyond it."""
    from pipeline.engines.llama import library

    longest = library.context_length(model)
    if settings.deepest + settings.decoded > longest:
        raise UserError(
            f"--depths: {settings.deepest} and {settings.decoded} decoded tokens exceed the model's context of "
            f"{longest}; take at most {longest - settings.decoded}"
        )
    draw, most = random.Random(seed), library.vocabulary_size(model)
    return [draw.randrange(most) for _ in range(longest)]


def parse(argv: list[str] | None = None) -> Settings:
    """Return the settings of a command line."""
    default = Settings()
    parser = argparse.ArgumentParser(prog="python -m pipeline.speed", description=__doc__)
    parser.add_argument("--depths", type=_positive, nargs="+", default=default.depths, help="prompt tokens")
    parser.add_argument("--tokens", type=_positive, default=default.tokens, help="tokens of a timed block")
    parser.add_argument("--blocks", type=_positive, default=default.blocks, help="timed blocks")
    parser.add_argument("--budget", type=_positive, default=default.budget, help="entries a layer keeps")
    parser.add_argument("--encodings", nargs="+", default=default.encodings, help="GGUF encodings, recipes/quantize/")
    parser.add_argument("--model", default=default.model, help="recipes/models/")
    found = vars(parser.parse_args(argv))
    return Settings(**found | {"depths": tuple(found["depths"]), "encodings": tuple(found["encodings"])})


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected at least 1")
    return number


def _run(settings: Settings) -> None:
    params = config.load()
    runtime.configure(params.runtime)
    main(params, settings)


if __name__ == "__main__":
    chosen = parse()
    stage.start_logging()
    sys.exit(stage.report_errors(lambda: _run(chosen)))
