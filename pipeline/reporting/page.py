"""The report as one context of tables, figures and words, rendered to Markdown and to one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.reporting import (
    against,
    answers,
    figures,
    kv,
    provenance,
    references,
    tables,
    text,
    training,
    trials,
    verdict,
)
from pipeline.reporting.load import Results
from pipeline.reporting.measured import Measure
from pipeline.reporting.records import Speed
from pipeline.reporting.table import interval, percent, plain
from pipeline.reporting.verdict import MEGABYTE

HERE = Path(__file__).parent
ANSWERS = {1: "Yes.", 0: "Not shown.", -1: "No."}
MOVES = {1: "rises", 0: "moves", -1: "falls"}


def html(report: dict[str, Any], template: str = "page.html.j2") -> str:
    """Return the report, or another page, as one HTML file that loads nothing and runs no script but its own."""
    environment = _environment(autoescape=True, finalize=_inert)
    script = Markup((HERE / "page.js").read_text(encoding="utf-8"))
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(report, script=script, style=style, digest=digest)


def markdown(report: dict[str, Any]) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    environment = _environment(autoescape=False, finalize=text.markdown)
    environment.filters["code"] = text.code
    return environment.get_template("report.md.j2").render(report)


def _environment(**more: Any) -> Environment:
    tidy = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, **tidy, **more)


def _inert(value: object) -> object:
    return text.inert(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def context(results: Results) -> dict[str, Any]:
    """Return everything that the templates print."""
    params, merged = results.params, results.quality["merged"]
    choices = verdict.choices(results)
    benched = params.bench.encodings[0]
    return {
        "results": results,
        "params": params,
        "name": f"{next(iter(results.quantized.values())).base}-{params.quantize.finetune}",
        "scorer": f"{merged.scorer.name}, layer {merged.scorer.layer}",
        "answer": answer(results, verdict.gain(results)),
        "figures": key_figures(results),
        "choices": choices,
        "scoreboard": tables.scoreboard(results, [choice.name for choice in choices[:-1]]),
        "cost": cost_figures(results),
        "bench": kv.sections(results),
        "legend": kv.legend(),
        "trials": {name: trials.tables(one) for name, one in results.bench.items()},
        "speed": speed_tables(results.speed),
        "questions": answers.questions(results),
        "policies_note": answers.POLICIES_NOTE,
        "splits": tables.splits(results),
        "drops": tables.drops(results),
        "trained": training.facts(results),
        "loss": training.loss_figure(results),
        "rate": training.rate_figure(results),
        "commit": provenance.commit(results),
        "commands": provenance.commands(results),
        "not_run": provenance.not_run(results),
        "recipes": provenance.recipes(results),
        "made": provenance.made(results),
        "checks": provenance.checks(results),
        "exports": provenance.exports(results),
        "files": provenance.files(results),
        "timings": provenance.timings(results),
        "spent": spent_figures(results),
        "total_seconds": sum(timing.seconds for timing in results.timings.values()),
        "settings": provenance.settings(params),
        "versions": provenance.versions(),
        "machine": results.bench[benched].machine,
        "benchmark": provenance.machine(results.bench[benched]),
        "references": against.comparisons(results, references.load()),
        "errata": against.errata_table(references.errata()),
    }


def speed_tables(speed: Speed | None) -> dict[str, Any] | None:
    """Return what the speed benchmark says, where it was run."""
    if speed is None:
        return None
    files, machine = ", ".join(speed.model.values()), speed.machine.words
    return {"files": files, "machine": machine, "rows": tables.speed(speed), "bounds": tables.bounds(speed)}


def answer(results: Results, gain: Measure) -> tuple[str, str]:
    """Return whether the fine-tuned model is better, in a word and in a sentence of numbers."""
    base, merged = (results.quality[cell].metrics.perplexity.value for cell in ("base", "merged"))
    side = verdict.sign(gain)
    change = plain(abs(gain.value), 4) if side else plain(gain.value, 4, signed=True)
    zero = "" if side else ", which holds zero"
    sentence = (
        f"BERT-F1 {MOVES[side]} by {change} against the base model, paired over {gain.n} test dialogues "
        f"({percent(0.95)} interval {interval(*gain.ci95, 4, signed=True)}{zero}); "
        f"perplexity of the reference answers goes from {plain(base, 2)} to {plain(merged, 2)}."
    )
    return ANSWERS[side], sentence


def key_figures(results: Results) -> list[tuple[str, str, str]]:
    """Return the few numbers under the answer: name, base to merged, what it means."""
    base, merged = (results.quality[cell].metrics for cell in ("base", "merged"))
    above = " → ".join(plain(one.bert_f1.value - one.bert_f1_shuffled.value, 3) for one in (base, merged))
    rows = [
        ("BERT-F1 ↑", "bert_f1", 3, 1, f"above its shuffled floor: {above}"),
        ("Perplexity ↓", "perplexity", 1, 1, "of the reference answers"),
        ("Bits a character ↓", "bits_per_char", 3, 1, "comparable across tokenizers"),
        ("Answers that end, % ↑", "ended", 1, 100, f"within {results.params.evaluate.max_new_tokens} tokens"),
    ]
    return [
        (name, " → ".join(plain(getattr(one, key).value * scale, digits) for one in (base, merged)), note)
        for name, key, digits, scale, note in rows
    ]


def cost_figures(results: Results) -> tuple[Markup, Markup]:
    """Return divergence over size, one point an encoding, and how often an encoding changes the top token."""
    metrics = {name: results.quality[name].metrics for name in results.quantized}
    points = [
        figures.Point(name, verdict.size(results, name) / MEGABYTE, one.kld.value) for name, one in metrics.items()
    ]
    bars = [figures.Bar(name, 100 * (1 - one.same_top.value)) for name, one in metrics.items()]
    return (
        figures.scatter("KLD from the merged model over size", points, "size, MB", "KLD, nats a token"),
        figures.bars("Tokens with another top choice", bars, "%"),
    )


def spent_figures(results: Results) -> tuple[Markup, Markup]:
    """Return the time and the peak memory of each stage, all cells of a matrix together."""
    seconds: dict[str, float] = {}
    peak: dict[str, float] = {}
    for name, timing in results.timings.items():
        stage = name.split("@")[0]
        seconds[stage] = seconds.get(stage, 0) + timing.seconds
        peak[stage] = max(peak.get(stage, 0), timing.peak_rss_bytes / MEGABYTE / 1000)
    return (
        figures.bars("Time by stage", [figures.Bar(*pair) for pair in seconds.items()], "s"),
        figures.bars("Peak memory by stage", [figures.Bar(*pair) for pair in peak.items()], "GB"),
    )
