"""params.yaml as frozen, strict sections: every problem found at once, with its key, its value and the nearest name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline import recipes, schema
from pipeline.errors import ConfigError
from pipeline.schema import Section

PARAMS = Path("params.yaml")

Positive = Annotated[int, Field(gt=0)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class Runtime(Section):
    """Seed and threads of every stage."""

    seed: Annotated[int, Field(ge=0)]
    threads: Positive


class Hub(Section):
    """A dataset repository on the Hugging Face hub, at a pinned revision."""

    repo: str
    revision: str
    train: str
    test: str


class Data(Section):
    """Where the dialogues come from."""

    source: Literal["embedded", "hub", "path"]
    path: tuple[str, ...] = ()
    test_path: tuple[str, ...] = ()
    hub: Hub


class Convert(Section):
    """How raw records become chat dialogues."""

    max_tokens: Positive
    validation: Positive
    test: Positive
    near_duplicate: Annotated[float, Field(ge=0.3, le=1)]


class Lora(Section):
    """The adapter (Hu et al., 2021)."""

    r: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: str | tuple[str, ...]


class Train(Section):
    """Supervised fine-tuning."""

    accelerate: str
    epochs: Annotated[float, Field(gt=0)]
    max_steps: Annotated[int, Field(ge=1)] | None
    batch_size: Positive
    gradient_accumulation: Positive
    max_length: Positive
    packing: bool
    bf16: bool | Literal["auto"]
    learning_rate: Annotated[float, Field(gt=0)]
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    evals: Positive
    early_stopping: Positive


class Merge(Section):
    """The merge and the largest difference from the adapter it may show."""

    dtype: Literal["bfloat16", "float16", "float32"]
    max_logit_diff: Annotated[float, Field(gt=0)]
    max_kld: Annotated[float, Field(gt=0)]


class Quantize(Section):
    """The encodings to make, and how they are calibrated and verified."""

    encodings: Names
    finetune: str
    calibration_dialogues: Positive
    calibration_tokens: Positive
    verify_dialogues: Positive
    max_logit_diff: Annotated[float, Field(gt=0)]


class Evaluate(Section):
    """Answer quality on the test set."""

    scorer: str
    dialogues: Positive
    max_new_tokens: Positive
    batch_size: Positive
    samples: Positive


class Lossless(Section):
    """Lossless decoding: which policies draft, and at most how many tokens before full KV verifies them."""

    policies: tuple[str, ...]
    draft_tokens: Positive


class Answers(Section):
    """Which policies answer evaluate's samples, and the KV entries a layer that those with a budget may keep."""

    policies: tuple[str, ...]
    budget: Positive


class Bench(Section):
    """The benchmark of quantised models on the CPU under KV-cache policies."""

    encodings: Names
    policies: Names
    depths: Annotated[tuple[Positive, ...], Field(min_length=1)]
    budgets: Annotated[tuple[Positive, ...], Field(min_length=1)]
    slack: Positive
    decode_tokens: Positive
    warmup_tokens: Positive
    repetitions: Positive
    scored_tokens: Positive
    recall_contexts: Annotated[int, Field(ge=0)]
    recall_questions: Positive
    conversations: Annotated[int, Field(ge=0)]
    lossless: Lossless
    answers: Answers


class Params(Section):
    """The whole of params.yaml: one section a stage, plus the model and the runtime that all stages share."""

    model: str
    runtime: Runtime
    data: Data
    convert: Convert
    lora: Lora
    train: Train
    merge: Merge
    quantize: Quantize
    evaluate: Evaluate
    bench: Bench


def load(path: str | Path = PARAMS) -> Params:
    """Read and check params.yaml and the recipes it names; raise ConfigError with every problem found."""
    params = schema.read(path, Params)
    if problems := list(_cross_checks(params)):
        raise ConfigError(*(f"{path}: {problem}" for problem in problems))
    return params


def _cross_checks(params: Params) -> Iterator[str]:
    named = {
        "model": ("models", [params.model]),
        "train.accelerate": ("accelerate", [params.train.accelerate]),
        "quantize.encodings": ("quantize", params.quantize.encodings),
        "evaluate.scorer": ("scorers", [params.evaluate.scorer]),
        "bench.policies": ("kv", params.bench.policies),
        "bench.lossless.policies": ("kv", params.bench.lossless.policies),
        "bench.answers.policies": ("kv", params.bench.answers.policies),
    }
    for key, (kind, names) in named.items():
        yield from (f"{key}: {problem}" for name in names if (problem := recipes.unknown(kind, name)))
    for encoding in params.bench.encodings:
        if encoding not in params.quantize.encodings:
            yield f"bench.encodings: '{encoding}' is not in quantize.encodings, so it is never made; add it there"
    if params.data.source == "path" and not params.data.path:
        yield "data.path: empty, but data.source is 'path'; name one or more JSON Lines files"
    for file in (*params.data.path, *params.data.test_path):
        if params.data.source == "path" and not Path(file).is_file():
            yield f"data.path: '{file}' is not a file; name JSON Lines files that exist"
