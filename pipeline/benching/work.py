"""FLOPs from actual lengths: two for each weight and token, four for each query head, entry seen and head value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engines.llama import library
from pipeline.kv.policy import Policy


@dataclass(frozen=True)
class Work:
    """What computing one model costs."""

    layers: int
    layer: int  # FLOPs of a layer's weights for a token
    entry: int  # FLOPs of a layer's attention for a token and entry seen
    head: int  # FLOPs of the output head for a token

    @classmethod
    def of(cls, model: Any) -> Work:
        """Return the work of a model with a gated MLP, from its GGUF header."""
        shape = library.cache_shape(model)
        width, hidden, heads = (
            library.number(model, key) for key in ("embedding_length", "feed_forward_length", "attention.head_count")
        )
        queries, values = heads * shape.key_length, shape.kv_heads * (shape.key_length + shape.value_length)
        weights = width * (queries + values) + heads * shape.value_length * width + 3 * width * hidden
        return cls(
            layers=shape.layers,
            layer=2 * weights,
            entry=2 * heads * (shape.key_length + shape.value_length),
            head=2 * width * library.vocabulary_size(model),
        )

    def tokens(self, count: float, seen: float, logits: float) -> float:
        """Return the FLOPs of ``count`` tokens through all layers that saw ``seen`` entries, layers added up."""
        return count * self.layers * self.layer + seen * self.entry + logits * self.head

    def prompt(self, policy: Policy, tokens: int) -> int:
        """Return the FLOPs of a prompt that is prefilled as a whole or narrowed, and of its one row of logits."""
        runs = passes(policy, self.layers, tokens)
        return sum(n * self.layer + n * (n + 1) // 2 * self.entry for n in runs) + self.head


def passes(policy: Policy, layers: int, tokens: int) -> Sequence[int]:
    """Return how many tokens each layer computes for a prompt; layers that read twice count twice."""
    narrowing = policy.narrowing
    if not narrowing:
        return [tokens] * layers
    sizes = narrowing.sizes(layers, tokens, policy.budget)
    stops = narrowing.stops(layers, tokens, policy.budget)
    if narrowing.scope == "input" and stops:
        return [tokens] * (stops[0][0] + 1) + sizes
    return sizes
