"""The tables of how it was made: checks, exports, files, time and memory, parameters and versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Any

from pipeline.config import Params
from pipeline.reporting.load import Results
from pipeline.reporting.measured import Measure
from pipeline.reporting.origin import Fingerprint
from pipeline.reporting.records import Bench, Parity
from pipeline.reporting.table import ABSENT, Cell, Column, Table, build, measured, number, text, words
from pipeline.reporting.verdict import MEGABYTE

PACKAGES = ("torch", "transformers", "trl", "peft", "llmcompressor", "gguf", "llama-cpp-python", "bert-score", "dvc")


def checks(results: Results) -> Table:
    """Return what was verified at the merge and at the splits: a value, its bound, and whether it holds."""
    merge, bounds, shared = results.merge, results.params.merge, results.chat.overlap
    merges = {"in float32": merge.in_memory, f"as {merge.dtype} on disk": merge.reloaded}
    items = [
        *(
            (f"Merge {where}: largest Δlogit", one.max_logit_diff, bounds.max_logit_diff)
            for where, one in merges.items()
        ),
        *((f"Merge {at}: KLD from the adapter", one.kld, bounds.max_kld) for at, one in merges.items()),
        *((f"Data: in both {name.replace('_', ' and ')}", Measure(value=count), 0) for name, count in shared.items()),
    ]
    columns = [
        words("Check", lambda item: text(item[0])),
        Column("Measured", lambda item: Cell(f"{item[1].value:.3g}", sort=item[1].value)),
        Column("Allowed", lambda item: Cell(f"{item[2]:g}", sort=item[2])),
        words("Holds", lambda item: text("yes" if item[1].value <= item[2] else "no")),
    ]
    return build(columns, items)


def exports(results: Results) -> Table:
    """Return every export with what verified it."""
    columns = [
        words("Encoding", lambda export: text(export.encoding)),
        words("Token ids", lambda export: text(_agreement(export.parity)), "dialogues tokenised as by Hugging Face"),
        Column("Largest Δlogit", lambda export: measured(export.logits.max_diff, 3), "on a fixed dialogue"),
        Column("Same top, %", lambda export: measured(export.logits.argmax_agreement, 1, 100), "on a fixed dialogue"),
        Column("Fallbacks", lambda export: number(len(export.fallbacks), 0), "tensors not of the type asked for"),
        words("Tensors", lambda export: text(_types(export.tensor_types))),
    ]
    return build(columns, results.quantized.values())


def _agreement(parity: Parity) -> str:
    return f"{parity.dialogues - parity.mismatches.value:.0f} of {parity.dialogues} agree"


def _types(types: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in types.items())


def files(results: Results) -> Table:
    """Return every file of every export with its checksum."""
    items = [(export.encoding, file) for export in results.quantized.values() for file in export.files]
    columns = [
        words("Encoding", lambda item: text(item[0])),
        words("File", lambda item: text(item[1].name)),
        Column("Bytes", lambda item: number(item[1].bytes, 0)),
        words("SHA-256", lambda item: text(item[1].sha256)),
    ]
    return build(columns, items)


def timings(results: Results) -> Table:
    """Return seconds and peak memory of every stage."""
    columns = [
        words("Stage", lambda pair: text(pair[0])),
        Column("Seconds", lambda pair: number(pair[1].seconds, 1), bar=True),
        Column("Peak memory, MB", lambda pair: number(pair[1].peak_rss_bytes / MEGABYTE, 0), bar=True),
    ]
    return build(columns, results.timings.items())


def settings(params: Params) -> Table:
    """Return every parameter of the run."""
    return _pairs("Parameter", leaves(params.model_dump(mode="json")))


def machine(bench: Bench) -> Table:
    """Return where a benchmark ran and how."""
    return _pairs("Benchmark", leaves(bench.machine.model_dump() | bench.settings))


def _pairs(label: str, items: Iterable[tuple[str, str]]) -> Table:
    return build([words(label, lambda pair: text(pair[0])), words("Value", lambda pair: text(pair[1]))], items)


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the text of every value of nested settings."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, ", ".join(map(str, node)) if isinstance(node, list) else str(node)


def versions() -> Table:
    """Return the versions of the libraries that do the work, as installed."""
    columns = [
        words("Package", text),
        words("Version", lambda name: text(_version(name))),
    ]
    return build(columns, PACKAGES)


def recipes(results: Results) -> Table:
    """Return every recipe that params name with the hash of its text."""
    return _fingerprints("Recipe", "SHA-256", results.origin.recipes)


def made(results: Results) -> Table:
    """Return the data and models that results rest on, as DVC fingerprinted them."""
    return _fingerprints("Made", "MD5, by DVC", results.origin.made)


def _fingerprints(label: str, digest: str, items: Iterable[Fingerprint]) -> Table:
    columns = [
        words(label, lambda item: text(item.name)),
        Column("Bytes", lambda item: Cell(ABSENT) if item.size is None else number(item.size, 0)),
        words(digest, lambda item: text(item.digest)),
    ]
    return build(columns, items)


def commit(results: Results) -> str:
    """Return the commit in words."""
    if results.origin.commit is None:
        return "outside a Git checkout"
    changed = ", with changes that are not committed" if results.origin.changed else ""
    return f"at commit {results.origin.commit[:12]}{changed}"


def commands(results: Results) -> list[str]:
    """Return what to type for the same numbers, and for single cells."""
    checkout = [f"git checkout {results.origin.commit[:12]}"] if results.origin.commit else []
    last, encoding = list(results.quantized)[-1], next(iter(results.bench))
    cells = [f"dvc repro evaluate-quantized@{last}", f"dvc repro bench@{encoding}"]
    return [*checkout, "make", *cells, "python -m pipeline.report"]


def not_run(results: Results) -> list[str]:
    """Return what a reader might look for here and what no stage measured, each as a sentence."""
    unbenched = [name for name, one in results.quantized.items() if one.family == "gguf" and name not in results.bench]
    served = [name for name, one in results.quantized.items() if one.family != "gguf"]
    unasked = [name for name, one in results.bench.items() if not any(row.recall for row in one.rows)]
    said = {
        "KV policies were not run on {}; add them to bench.encodings.": unbenched,
        "Speed on a GPU server was not measured for {}; their quality was, with the weights unpacked.": served,
        "These recipes in recipes/kv/ are not in bench.policies: {}.": results.origin.unused,
        "No recall questions were asked of {}; raise bench.recall_contexts.": unasked,
        "Speed at a real model’s size was not measured: run {}.": [] if results.speed else ["make speed"],
    }
    return [sentence.format(", ".join(names)) for sentence, names in said.items() if names]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # the report needs none of them
        return None
