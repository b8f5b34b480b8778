"""What the tests of the report share: params with few cells, a bent value, and what a page loads and shows."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.config import Answers, Params
from tests import report_results


def few_cells(params: Params) -> Params:
    """Return params with few cells, so that the golden report is short and does not follow params.yaml."""
    quantize = params.quantize.model_copy(update={"encodings": ("Q8_0", "Q4_K_M", "W4A16"), "finetune": "MedChatZH"})
    bench = params.bench.model_copy(
        update={
            "encodings": ("Q4_K_M",),
            "policies": ("full", "recent_only", "streaming_llm", "snapkv"),
            "depths": (256, 512),
            "decode_tokens": 64,
            "answers": Answers(policies=("streaming_llm", "snapkv"), budget=48),
        }
    )
    evaluate = params.evaluate.model_copy(update={"max_new_tokens": 192})
    return params.model_copy(update={"model": "nano", "quantize": quantize, "evaluate": evaluate, "bench": bench})


def workspace(params: Params, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Make ``directory`` a working directory that holds the JSON of a whole run; return the run's params."""
    monkeypatch.chdir(directory)
    small = few_cells(params)
    report_results.write(directory, small)
    return small


def bend(name: str, *keys: str | int, value: object) -> None:
    """Set one value inside a JSON file."""
    document = json.loads(Path(name).read_text(encoding="utf-8"))
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    Path(name).write_text(json.dumps(document), encoding="utf-8")


class Page(HTMLParser):
    """What a page would load or run, and the text it shows."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.loads, self.shown, self.lang = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")]
        self.lang += [value for name, value in attrs if name == "lang"]

    def handle_data(self, data):
        self.shown.append(data)
