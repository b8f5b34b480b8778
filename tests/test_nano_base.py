"""The shipped base: size and shape, sources in its card, bounds of its own weights."""

from __future__ import annotations

import pytest

from pipeline.io import read_json, sha256, size_bytes
from pipeline.nano import recipe

from .conftest import ROOT

BASE = ROOT / "data" / "embedded" / "base"
measured = pytest.mark.skipif(not (BASE / "bounds.json").is_file(), reason="the shipped base was not measured yet")


def test_shipped_base_is_small_and_of_the_recipes_shape():
    assert size_bytes(BASE / "model.safetensors") <= 16e6
    config = read_json(BASE / "config.json")
    sizes = recipe.load()["model"]
    assert {name: config[name] for name in sizes if name in config} == {k: sizes[k] for k in sizes if k in config}


def test_card_tells_weights_and_every_source():
    card = (BASE / "README.md").read_text(encoding="utf-8")
    assert sha256(BASE / "model.safetensors") in card
    for source in recipe.load()["corpus"]["sources"].values():
        assert source["origin"] in card
        assert source["licence"] in card


@measured
def test_bounds_are_of_the_shipped_weights_and_in_the_card():
    bounds = read_json(BASE / "bounds.json")
    assert bounds["weights_sha256"] == sha256(BASE / "model.safetensors")
    assert all(check["name"] in (BASE / "README.md").read_text(encoding="utf-8") for check in bounds["checks"])
