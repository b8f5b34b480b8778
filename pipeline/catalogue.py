"""list: print the recipes to choose from, one line each."""

from __future__ import annotations

from pipeline import models, recipes
from pipeline.kv import recipe as policy
from pipeline.metrics import bert_f1
from pipeline.quant import recipe

KINDS = {
    "models": ("models (params: model)", lambda name: models.read(name).summary),
    "quantize": ("encodings (params: quantize.encodings)", lambda name: recipe.read(name).summary),
    "scorers": ("scorers (params: evaluate.scorer)", lambda name: bert_f1.read(name).summary),
    "kv": ("KV-cache policies (params: bench.policies)", lambda name: policy.read(name).composition),
}


def main() -> None:
    """Print every recipe's name and what it is."""
    for kind, (heading, describe) in KINDS.items():
        names = recipes.names(kind)
        width = max(map(len, names))
        print(heading)
        for name in names:
            print(f"  {name:<{width}}  {describe(name)}")
        print()
