"""Reads the JSON of all stages, named by params and never by what lies in a folder; every problem found at once."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.reporting import origin, records

CHAT = Path("data/chat/summary.json")
EVAL = Path("eval")
SPEED = EVAL / "bench/speed.json"
CURVES = ("loss", "eval_loss", "learning_rate")
REFERENCES = ("base", "merged")
AGAIN = "run `dvc repro {stage}`"

Model = TypeVar("Model", bound=records.Record)
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Results:
    """Everything the stages measured. Dicts are in the order of params."""

    params: Params
    chat: records.ChatSummary
    train: records.TrainSummary
    curves: dict[str, Curve]
    merge: records.Merge
    quantized: dict[str, records.Quantized]
    quality: dict[str, records.Quality]
    bench: dict[str, records.Bench]
    timings: dict[str, records.StageTiming]
    speed: records.Speed | None  # measured by hand, with `make speed`
    origin: origin.Origin | None


@dataclass
class Reader:
    """Reads files below ``root`` and remembers what is wrong with them."""

    root: Path = Path()
    problems: list[str] = field(default_factory=list)

    def record(self, path: Path, model: type[Model], stage: str) -> Model | None:
        """Return a file's record, or None with the problem noted."""
        again = AGAIN.format(stage=stage)
        try:
            return model.model_validate(json.loads((self.root / path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            self.problems.append(f"{path}: missing; {again}")
        except ValidationError as error:
            self.problems += [f"{path}: {problem}; {again}" for problem in _explained(error)]
        except ValueError as error:
            self.problems.append(f"{path}: not readable as JSON ({error}); {again}")
        return None

    def curve(self, path: Path, stage: str) -> Curve | None:
        """Return the (step, value) pairs of a DVCLive table, or None with the problem noted."""
        again = AGAIN.format(stage=stage)
        try:
            with (self.root / path).open(encoding="utf-8", newline="") as lines:
                return [(float(row["step"]), float(row[path.stem])) for row in csv.DictReader(lines, delimiter="\t")]
        except FileNotFoundError:
            self.problems.append(f"{path}: missing; {again}")
        except (KeyError, TypeError, ValueError):
            self.problems.append(f"{path}: not a table of step and {path.stem}; {again}")
        return None


def _explained(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        got = "" if problem["type"] == "missing" else f", got {str(problem['input'])[:60]!r}"
        yield f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}{got}"


def load(params: Params) -> Results:
    """Read what every stage wrote; raise UserError naming each file that is missing, partial or malformed."""
    reader = Reader()
    chat = reader.record(CHAT, records.ChatSummary, "convert")
    results = _measured(reader, params, chat, origin.read(params, reader.problems))
    return _whole(results, reader, (records.FULL, *params.bench.policies))


def load_revision(params: Params, root: Path) -> Results:
    """Read what Git tracks of another revision's results, from the folder that holds its eval/.

    Errors are load's, but a policy without rows is none: nothing can be measured at that revision any more.
    """
    reader = Reader(root)
    return _whole(_measured(reader, params, None, None), reader, (records.FULL,))


def _measured(
    reader: Reader, params: Params, chat: records.ChatSummary | None, made_from: origin.Origin | None
) -> Results:
    encodings = params.quantize.encodings
    return Results(
        params=params,
        chat=chat,
        train=reader.record(EVAL / "train/summary.json", records.TrainSummary, "train"),
        curves={name: reader.curve(EVAL / f"train/plots/metrics/{name}.tsv", "train") for name in CURVES},
        merge=reader.record(EVAL / "merge.json", records.Merge, "merge"),
        quantized={
            name: reader.record(EVAL / f"quantize/{name}.json", records.Quantized, f"quantize@{name}")
            for name in encodings
        },
        quality={
            name: reader.record(EVAL / f"quality/{name}.json", records.Quality, evaluate_stage(name))
            for name in (*REFERENCES, *encodings)
        },
        bench={
            name: reader.record(EVAL / f"bench/{name}.json", records.Bench, f"bench@{name}")
            for name in params.bench.encodings
        },
        timings={
            timing: reader.record(EVAL / f"timings/{timing}.json", records.StageTiming, stage)
            for timing, stage in stages(params)
        },
        speed=reader.record(SPEED, records.Speed, "speed") if (reader.root / SPEED).is_file() else None,
        origin=made_from,
    )


def _whole(results: Results, reader: Reader, policies: tuple[str, ...]) -> Results:
    """Return results that are all there, with these policies, and fit together; raise UserError with every problem."""
    if problems := reader.problems or list(_incomplete(results, policies)):
        raise UserError(*problems)
    return results


def evaluate_stage(cell: str) -> str:
    """Return the DVC name of the stage that evaluates a model."""
    return f"evaluate@{cell}" if cell in REFERENCES else f"evaluate-quantized@{cell}"


def stages(params: Params) -> Iterator[tuple[str, str]]:
    """Yield the timing's name and the DVC name of every stage before the report, in the order they run."""
    yield from ((name, name) for name in ("download", "base", "convert", "train", "merge"))
    yield from ((f"quantize@{name}", f"quantize@{name}") for name in params.quantize.encodings)
    yield from ((f"evaluate@{name}", evaluate_stage(name)) for name in (*REFERENCES, *params.quantize.encodings))
    yield from ((f"bench@{name}", f"bench@{name}") for name in params.bench.encodings)


def _incomplete(results: Results, policies: tuple[str, ...]) -> Iterator[str]:
    """Yield what does not fit together: cells about other dialogues, a bench without one of its policies."""
    merged = _dialogues(results.quality["merged"])
    for name, quality in results.quality.items():
        if _dialogues(quality) != merged or len(quality.per_dialogue.bert_f1) != len(quality.per_dialogue.ids):
            again = AGAIN.format(stage=evaluate_stage(name))
            yield f"{EVAL}/quality/{name}.json: not about the dialogues that merged.json is about; {again}"
    params = results.params.bench
    for name, bench in results.bench.items():
        again = AGAIN.format(stage=f"bench@{name}")
        found = {(row.policy, row.depth) for row in bench.rows}
        for policy, depth in product(dict.fromkeys(policies), params.depths):
            if (policy, depth) not in found:
                yield f"{EVAL}/bench/{name}.json: no row for policy {policy} at depth {depth}; {again}"
        if any([one.id for one in given.answers] != merged[1] for given in bench.answers):
            yield f"{EVAL}/bench/{name}.json: answers to other samples than merged.json's; {again}"


def _dialogues(quality: records.Quality) -> tuple[list[str], list[str]]:
    return quality.per_dialogue.ids, [sample.id for sample in quality.samples]
