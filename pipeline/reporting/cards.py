"""Model cards with what was measured: an artifact's own card, the hub's model-index, numbers beside merged and base."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.reporting import text
from pipeline.reporting.load import Results
from pipeline.reporting.measured import Measure
from pipeline.reporting.records import Quality
from pipeline.reporting.table import ARROWS, Cell, measured, number
from pipeline.reporting.verdict import MEGABYTE

ARTIFACTS = Path("artifacts")
CARDS = ARTIFACTS / "cards"
CARD = "README.md"
FRONT = re.compile(r"---\n(.*?\n)---\n\n(.*)", re.DOTALL)
REFERENCES = {"merged": "fine-tuned", "base": "base model"}  # quality's cells that every card shows


@dataclass(frozen=True)
class Metric:
    """One measure as a card shows it: quality's key, the hub's metric type, a name, decimals."""

    key: str
    type: str
    name: str
    digits: int
    beside_merged: bool = False  # means nothing of the merged model itself


METRICS = (
    Metric("bert_f1", "bertscore", "BERT-F1", 4),
    Metric("perplexity", "perplexity", "Perplexity of the reference answers", 2),
    Metric("bits_per_char", "bits_per_character", "Bits a character", 3),
    Metric("kld", "kl_divergence", "KL divergence from the merged model, nats a token", 4, beside_merged=True),
    Metric("same_top", "top1_agreement", "Same most likely token as the merged model", 3, beside_merged=True),
    Metric("ended", "ended", "Share of answers that end by themselves", 3),
)


def artifacts(params: Params) -> dict[str, Path]:
    """Return the folder of every artifact that can be published, by its name."""
    quantized = {name: ARTIFACTS / "quantized" / name for name in params.quantize.encodings}
    return {"adapter": ARTIFACTS / "adapter", "merged": ARTIFACTS / "merged", **quantized}


def card(results: Results, artifact: str, own: str) -> str:
    """Return the card of an artifact: the one it was made with (``own``), completed by what was measured since.

    An adapter is measured merged. Raises UserError if ``own`` has no front matter.
    """
    found = FRONT.fullmatch(own)
    if not found:
        problem = f"the card of {artifact} does not begin with YAML between two lines of ---"
        raise UserError(f"{problem}; make the artifact anew with `dvc repro -f`")
    cell = artifact if artifact in results.quality else "merged"
    front = yaml.safe_load(found[1]) | front_matter(results, cell, _title(found[2]))
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    measured_part = _measured(results, cell, _columns(artifact, cell))
    return f"---\n{header}---\n\n{found[2].rstrip()}\n\n{measured_part}\n{_terms(results)}"


def _title(body: str) -> str:
    return body.splitlines()[0].removeprefix("# ")


def front_matter(results: Results, cell: str, name: str) -> dict[str, Any]:
    """Return the front matter that only measuring gives: data, metrics and the hub's model-index."""
    source, quality = results.chat.source, results.quality[cell]
    source_name = " ".join(text.inert(source["name"]).split())
    dataset = {"name": source_name, "type": source["repo"] or _slug(source_name), "split": "test"}
    if source["revision"]:
        dataset["revision"] = source["revision"]
    metrics = [
        {"type": metric.type, "name": metric.name, "value": _of(quality, metric).value}
        for metric in _shown(cell)
        if _of(quality, metric).finite  # the hub takes numbers alone
    ]
    front = {"datasets": [source["repo"]]} if source["repo"] else {}
    task = {"type": "text-generation", "name": "Answers to medical dialogues"}
    front["metrics"] = [metric["type"] for metric in metrics]
    front["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return front


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _shown(cell: str) -> Iterator[Metric]:
    return (metric for metric in METRICS if cell != "merged" or not metric.beside_merged)


def _of(quality: Quality, metric: Metric) -> Measure:
    return getattr(quality.metrics, metric.key)


def _columns(artifact: str, cell: str) -> dict[str, str]:
    """Return quality's cells that a card shows, with their headings."""
    own = "this model" if artifact == cell else "with this adapter"
    return {cell: own} | {name: heading for name, heading in REFERENCES.items() if name != cell}


def _measured(results: Results, cell: str, cells: dict[str, str]) -> str:
    dialogues, source = len(results.quality[cell].per_dialogue.ids), text.markdown(results.chat.source["name"])
    lines = [
        "## Measured",
        "",
        f"On {dialogues} test dialogues of {source} that it was not trained on, the same for all; answers are greedy. "
        "Brackets are 95 % intervals, ± is a standard error.",
        "",
        f"| | {' | '.join(cells.values())} |",
        f"|---|{'---:|' * len(cells)}",
    ]
    for metric in _shown(cell):
        shown = [_number(results.quality[name], metric) for name in cells]
        arrow = ARROWS[_of(results.quality[cell], metric).better]
        lines.append(f"| {metric.name} {arrow} | {' | '.join(map(_plain, shown))} |")
    sizes = [number(results.quality[name].size_bytes.value / MEGABYTE, 1) for name in cells]
    return "\n".join(
        [*lines, f"| Size of the weights, MB ↓ | {' | '.join(map(_plain, sizes))} |", "", _floor(results, cell)]
    )


def _number(quality: Quality, metric: Metric) -> Cell:
    return measured(_of(quality, metric), metric.digits, ci=metric.key == "bert_f1")


def _plain(cell: Cell) -> str:
    return f"{cell.text} {cell.detail}".strip()


def _floor(results: Results, cell: str) -> str:
    quality = results.quality[cell]
    floor, scorer = _plain(number(quality.metrics.bert_f1_shuffled.value, 4)), text.markdown(quality.scorer.name)
    return (
        f"BERT-F1 is by {scorer}, layer {quality.scorer.layer}; the same answers against other dialogues’ references "
        f"score {floor}, and only what lies above is about content.\n"
    )


def _terms(results: Results) -> str:
    source = results.chat.source
    licence = f": {text.markdown(source['license'])}" if source.get("license") else ""
    return (
        "## Terms\n\n"
        "The model is for research and is not medical advice: it makes things up, and no clinician has checked it. "
        f"The dialogues keep the terms of their source ({text.markdown(source['name'])}{licence}).\n"
    )
