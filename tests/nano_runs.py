"""The tiny embedded base of the tests: its sizes, and runs of its pretraining."""

from __future__ import annotations

from pipeline.nano import pretrain
from pipeline.nano.model import ModelConfig

TINY = ModelConfig(
    vocab_size=640,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rope_theta=10000.0,
    max_position_embeddings=256,
)


def run_of(settings: dict, **changes) -> pretrain.Run:
    """Return a run of a recipe with some keys of its pretraining changed, not compiled."""
    return pretrain.Run({**settings, "pretrain": {**settings["pretrain"], **changes}})
