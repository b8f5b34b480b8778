"""A recipe of the embedded base that takes seconds, with its corpus and tokenizer made, once a session."""

from __future__ import annotations

import json

import pytest

from pipeline.nano import corpus, recipe
from pipeline.nano import tokenizer as nano_tokenizer

from .nano_runs import TINY

SAMPLES = {
    "dialogues": lambda index: "\n".join(
        json.dumps({"instruction": f"咳嗽{i}天了怎么办？", "output": f"多喝温水{i}次，注意休息{index}。"})
        for i in range(40)
    ),
    "classics": lambda index: "\n".join(f"第{i}条。太阳之为病，脉浮，头项强痛而恶寒。" for i in range(200)),
    "book": lambda index: "\n\n".join(f"Call me Ishmael {i}.\nSome years ago, never mind." for i in range(200)),
}


@pytest.fixture(scope="session")
def nano_recipe(tmp_path_factory) -> dict:
    """The real recipe with a corpus, a vocabulary and a model that take seconds; corpus and tokenizer are made."""
    root = tmp_path_factory.mktemp("nano")
    folder = root / "corpus"
    settings = recipe.load()
    for source in settings["corpus"]["sources"].values():
        for index, name in enumerate(source["files"]):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(SAMPLES[source["reader"]](index), encoding="utf-8")
    settings |= {"build": str(root / "build"), "base": str(root / "base"), "model": {**TINY.__dict__}}
    settings["tokenizer"]["vocabulary_weight"] = 1
    settings["corpus"]["held_out_percent"] = 30
    pretraining = settings["pretrain"]
    phase = {**pretraining["phases"][1], "until": 10**6, "rows": 2, "length": 64, "gap_length": 128}
    heads = {"previous": [0, 0], "name": [1, 1], "field": [1, 2], "copy": [1, 0], "recall": [2, 0]}
    pretraining["guide"] |= {kind: [head] for kind, head in heads.items()}
    settings["pretrain"] = pretraining | {
        "tokens": 512,
        "warmup_steps": 1,
        "watched_rows": 16,
        "decay_from": 256,
        "phases": [phase],
    }
    corpus.main(settings, folder)
    nano_tokenizer.main(settings)
    return settings
