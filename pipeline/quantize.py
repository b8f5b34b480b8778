"""quantize: make one encoding of the merged model and verify it; artifacts/merged to artifacts/quantized/<encoding>."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pipeline import export as card
from pipeline import io, models, stage
from pipeline.config import Params
from pipeline.metrics.measure import measure
from pipeline.quant import compressed, gguf, verify, weights
from pipeline.quant.job import Export, Job
from pipeline.quant.recipe import read

log = logging.getLogger(__name__)

MERGED = Path("artifacts/merged")
QUANTIZED = Path("artifacts/quantized")
DIALOGUES = Path("data/chat/train.jsonl")
SOURCE = Path("data/raw/source.json")
RESULTS = Path("eval/quantize")

FAMILIES = {"gguf": gguf.make, "compressed": compressed.make}


def main(params: Params, encoding: str) -> None:
    """Read artifacts/merged and training dialogues; write artifacts/quantized/<encoding> and its JSON in eval/."""
    recipe = read(encoding)
    models.check(MERGED, origin=str(MERGED))
    with stage.timed(f"quantize@{encoding}"), io.atomic_dir(QUANTIZED / encoding) as out:
        model = models.read(params.model)
        job = Job(encoding, recipe, model, params, MERGED, DIALOGUES, io.read_json(SOURCE), out)
        export = FAMILIES[recipe.family](job)
        verified = {"parity": verify.parity(job, export), "logits": verify.logits(job, export)}
        write_card(job, export)
        result = describe(job, export) | verified
    io.write_json(RESULTS / f"{encoding}.json", result)
    log.info(
        "quantize@%s: %.2f bits a weight, largest logit difference %s",
        encoding,
        result["bits_per_weight"]["value"],
        result["logits"]["max_diff"]["value"],
    )


def describe(job: Job, export: Export) -> dict[str, Any]:
    """Return what the export is and holds."""
    parameters = weights.count_parameters(job.merged)
    return {
        "encoding": job.encoding,
        "family": job.recipe.family,
        "summary": job.recipe.summary,
        "name": job.name,
        "base": job.base_name,
        "parameters": parameters,
        "files": [
            {"name": file.name, "bytes": file.stat().st_size, "sha256": io.sha256(file)}
            for file in sorted(job.out.iterdir())
        ],
        "bits_per_weight": measure(export.bits / parameters, n=parameters, unit="bits", better="lower"),
        "tensor_types": dict(export.tensor_types),
        "fallbacks": list(export.fallbacks),
    }


def write_card(job: Job, export: Export) -> None:
    """Write the model card of the export."""
    card.write_card(
        job.out,
        title=job.name,
        base_model=job.model.repo or job.base_name,
        relation="quantized",
        library=export.library,
        license=job.model.license,
        languages=job.model.languages,
        datasets=[job.source["repo"]] if job.source["repo"] else [],
        tags=["medical", job.encoding],
        body=f"{job.recipe.summary}\n\n{export.usage}",
    )


if __name__ == "__main__":
    stage.run(main)
