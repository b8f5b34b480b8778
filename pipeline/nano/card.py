"""Recipe, progress, loss curve and bounds.json -> data/embedded/base/README.md, the model card (text in card.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.io import read_json, read_jsonl, sha256, write_text
from pipeline.nano import corpus, tokenizer
from pipeline.nano.pretrain import LOG_STEPS
from pipeline.quant.weights import count_parameters

CURVE_ROWS = 16
NOT_MEASURED = "These weights were not measured in full yet."
HOLDS = {True: "yes", False: "**no**", None: ""}


def main(recipe: dict) -> None:
    """Write the card of the shipped base."""
    base, run = Path(recipe["base"]), Path(recipe["build"]) / "pretrain"
    progress = read_json(run / "last" / "progress.json")
    settings = recipe["pretrain"]
    words = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    write_text(
        base / "README.md",
        words.format(
            **recipe["model"],
            parameters=count_parameters(base) / 1e6,
            weights_sha256=sha256(base / "model.safetensors"),
            characters_per_token=characters_per_token(recipe),
            trained_length=max(phase["length"] for phase in settings["phases"]),
            sink_weight=max(phase["sink"] for phase in settings["phases"]),
            sink_mass=settings["sink"]["mass"],
            sink_first=settings["sink"]["first_layer"],
            tokens=progress["tokens"] / 1e6,
            steps=progress["step"],
            hours=progress["seconds"] / 3600,
            held_out=recipe["corpus"]["held_out_percent"],
            sources=sources(recipe, progress),
            chat_share=100 * progress["chat_tokens"] / progress["tokens"],
            muon_lr=settings["muon"]["lr"],
            adamw_lr=settings["adamw"]["lr"],
            phases=phases(settings["phases"]),
            log_steps=LOG_STEPS,
            curve=curve(list(read_jsonl(run / "curve.jsonl"))),
            bounds=bounds(base / "bounds.json"),
        ),
    )


def table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def characters_per_token(recipe: dict) -> float:
    """Return the mean over the held-out real consultations."""
    texts = [document["text"] for document in corpus.load(recipe, "held_out")["internal_medicine"]]
    tokens = sum(len(encoded.ids) for encoded in tokenizer.load(recipe).encode_batch(texts))
    return sum(map(len, texts)) / tokens


def sources(recipe: dict, progress: dict) -> str:
    """Return origin, licence, size and passes of every source."""
    train = corpus.load(recipe, "train")
    return table(
        ["source", "licence", "documents", "characters", "passes"],
        [
            [
                source["origin"],
                source["licence"],
                len(train[name]),
                f"{sum(len(d['text']) for d in train[name]):,}",
                f"{progress['drawn'][name] / len(train[name]):.2f}",
            ]
            for name, source in recipe["corpus"]["sources"].items()
        ],
    )


def phases(rows: list[dict]) -> str:
    """Return what the run was made of, a line a phase."""
    return table(
        ["until, million tokens", "length", "rows", "rows with position gaps", "mix of documents"],
        [
            [
                f"{row['until'] / 1e6:.2f}",
                row["length"],
                row["rows"],
                f"{row['gaps']:.0%}",
                ", ".join(f"{kind} {share:.0%}" for kind, share in row["mix"].items()),
            ]
            for row in rows
        ],
    )


def curve(points: list[dict]) -> str:
    """Return the loss curve, thinned evenly in tokens; a resumed run's later line for a step counts."""
    points = sorted({point["step"]: point for point in points}.values(), key=lambda point: point["tokens"])
    first_of_stretch = {p["tokens"] * CURVE_ROWS // points[-1]["tokens"]: p for p in reversed(points)}
    return table(
        ["million tokens", "length", "natural text", "answer", "mass on the first token"],
        [
            [f"{p['tokens'] / 1e6:.2f}", p["length"], *(f"{p[name]:.2f}" for name in ("natural", "answer", "sink"))]
            for _, p in sorted(first_of_stretch.items())
        ],
    )


def bounds(path: Path) -> str:
    """Return the checks of the weights and how many of them hold, if these weights were measured."""
    if not path.is_file():
        return NOT_MEASURED
    measured = read_json(path)
    if measured["weights_sha256"] != sha256(path.with_name("model.safetensors")):
        return NOT_MEASURED
    return f"{checks(measured['checks'])}\n\n{verdict(measured['checks'])}"


def checks(rows: list[dict]) -> str:
    """Return every check with its value, interval, bound and whether it holds."""
    return table(
        ["check", "measured", "95 % interval", "n", "bound", "holds"],
        [
            [
                row["name"],
                _number(row["measured"]["value"]),
                _interval(row["measured"]["ci95"]),
                row["measured"]["n"] or "",
                _bound(row),
                HOLDS[row["holds"]],
            ]
            for row in rows
        ],
    )


def verdict(rows: list[dict]) -> str:
    """Return how many bounds hold, and which do not."""
    bounded = [row for row in rows if row["holds"] is not None]
    missed = [row["name"] for row in bounded if not row["holds"]]
    text = f"{len(bounded) - len(missed)} of {len(bounded)} bounds hold."
    return text + (f" Missed: {'; '.join(missed)}." if missed else "")


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else f"{_number(bounds[0])} to {_number(bounds[1])}"


def _bound(row: dict) -> str:
    low = [] if row["low"] is None else [f">= {_number(row['low'])}"]
    high = [] if row["high"] is None else [f"<= {_number(row['high'])}"]
    return ", ".join(low + high)
