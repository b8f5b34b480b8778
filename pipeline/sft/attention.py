"""Attention of packed rows on the CPU, example by example: no mask, and no work for pairs that a mask would hide."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

NAME = "packed_examples"  # transformers makes no mask for an attention that it does not know


def replace(model: PreTrainedModel) -> bool:
    """Have the model attend by :func:`attend` if its attention is plain; return whether it is.

    Calls of its body then take the examples' lengths, see :func:`lengths`. A model whose layers look through windows
    or cap their scores keeps its own attention.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    variants = ("sliding_window", "attn_logit_softcapping")
    plain = kinds == {"full_attention"} and all(getattr(config, name, None) is None for name in variants)
    if plain and config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attend)
        model.set_attn_implementation(NAME)
    return config._attn_implementation == NAME


def lengths(position_ids: Tensor) -> list[int]:
    """Return the tokens of each example in rows of them one behind another, from positions that restart at 0.

    Padding, a run of zeros, counts as one example.
    """
    starts = position_ids == 0
    starts[:, 1:] &= position_ids[:, :-1] != 0
    places = [*starts.flatten().nonzero().flatten().tolist(), position_ids.numel()]
    return [end - start for start, end in pairwise(places)]


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    example_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return what each token reads of its own example up to itself, [rows, tokens, heads, head_dim].

    Called by transformers with [rows, heads, tokens, head_dim]; keys and values may have fewer heads. Without lengths
    each row is one example.
    """
    rows, heads, tokens, _ = query.shape
    sizes = example_lengths or [tokens] * rows
    parts = []
    for part in zip(*(_examples(states, sizes) for states in (query, key, value)), strict=True):
        read = F.scaled_dot_product_attention(*part, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True)
        parts.append(read[0].transpose(0, 1))
    return torch.cat(parts).view(rows, tokens, heads, -1), None


def _examples(states: Tensor, sizes: list[int]) -> list[Tensor]:
    """Return [rows, heads, tokens, head_dim] as one [1, heads, length, head_dim] for each example."""
    joined = states.transpose(1, 2).flatten(0, 1)
    return [part.transpose(0, 1).unsqueeze(0) for part in joined.split(sizes)]
