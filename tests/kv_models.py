"""Tiny random models, and a forward pass over full attention matrices that follows a view: who sees whom, and where."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from transformers import AttentionInterface, GPTNeoXConfig, GPTNeoXForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pipeline import prompts

LAYERS, HEADS, HEAD_DIM, VOCABULARY, THETA = 4, 4, 16, 128, 10000.0
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # attention that is far from even, so that ranks are clear
}
ROPE = {"rope_type": "default", "rope_theta": THETA}


@lru_cache
def qwen3():
    """Return a Qwen3 with 2 KV heads; the norms of queries and keys are uneven, so that keys differ in length."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=HEAD_DIM, rope_parameters=ROPE))
    for layer in model.model.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            torch.nn.init.uniform_(norm.weight, 0.4, 1.6)
    return model.eval()


@lru_cache
def gpt_neox():
    """Return a GPT-NeoX that rotates a quarter of each head."""
    torch.manual_seed(1)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, rope_parameters=ROPE | {"partial_rotary_factor": 0.25})).eval()


MODELS = {"qwen3": qwen3, "gpt_neox": gpt_neox}


def random_ids(count: int, seed: int = 2) -> list[int]:
    """Return random tokens."""
    return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@lru_cache
def words():
    """Return a tokenizer of as many tokens as the models know, one a word, with the pipeline's chat format."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special, plain = ["<|im_start|>", "<|im_end|>"], ["<think>", "</think>"]
    known = [*special, *plain, "[?]", "system", "user", "assistant", "。", "."]
    known += [f"w{number}" for number in range(VOCABULARY - len(known))]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="[?]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    tokenizer.chat_template = prompts.template()
    return tokenizer


@dataclass
class View:
    """What each of n tokens sees in every layer and KV head, where it sees it, and what came of it."""

    visible: Tensor  # bool [layers, kv_heads, n, n]
    places: Tensor  # int64 [layers, kv_heads, n, n], the position of entry j when token t sees it
    own: Tensor  # int64 [n], the position of each token's query
    rope_dims: int
    queries: list[Tensor] = field(default_factory=list)  # of each layer, without RoPE, [heads, n, head_dim]
    keys: list[Tensor] = field(default_factory=list)  # [kv_heads, n, head_dim]
    logits: list[Tensor] = field(default_factory=list)  # q.k after RoPE, [heads, n, n]
    rows: list[Tensor] = field(default_factory=list)  # attention weights, [heads, n, n]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what the queries of the next layer read, [heads, n, head_dim]."""
        layer, group = len(self.rows), queries.shape[0] // keys.shape[0]
        logits = torch.cat(
            [
                self._dots(queries[head * group : (head + 1) * group], keys[head], self.places[layer, head])
                for head in range(len(keys))
            ]
        )
        hidden = ~self.visible[layer].repeat_interleave(group, dim=0)
        rows = torch.softmax((logits / HEAD_DIM**0.5).masked_fill(hidden, -torch.inf), dim=-1)
        self.queries.append(queries)
        self.keys.append(keys)
        self.logits.append(logits)
        self.rows.append(rows)
        return rows @ values.repeat_interleave(group, dim=0)

    def _dots(self, queries: Tensor, keys: Tensor, places: Tensor) -> Tensor:
        """Return q.k [heads, n, n] of un-rotated vectors, each pair turned by its own distance."""
        half = self.rope_dims // 2
        frequencies = THETA ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = (self.own[:, None] - places).unsqueeze(-1) * frequencies
        turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
        q, k = (torch.complex(v[..., :half], v[..., half : 2 * half]) for v in (queries, keys))
        turned = torch.einsum("htf,jf,tjf->htj", q, k.conj(), turns).real
        return turned + queries[..., 2 * half :] @ keys[..., 2 * half :].T


def rope_dims(model) -> int:
    """Return how many values of each head the model rotates."""
    return int(HEAD_DIM * model.config.rope_parameters.get("partial_rotary_factor", 1.0))


def kv_heads(model) -> int:
    """Return the model's KV heads."""
    return getattr(model.config, "num_key_value_heads", None) or HEADS


def causal_view(model, count: int) -> View:
    """Return the view of plain attention."""
    shape = (LAYERS, kv_heads(model), count, count)
    own = torch.arange(count)
    return View(torch.ones(shape, dtype=torch.bool).tril(), own.expand(shape).clone(), own.clone(), rope_dims(model))


@torch.no_grad()
def look(model, ids: list[int], view: View) -> Tensor:
    """Return the logits [n, vocabulary] of one forward pass that follows the view, which keeps what it saw.

    All tokens are fed at position 0, where RoPE does nothing; the view does the turning.
    """
    output = _full_matrix(model)(
        torch.tensor([ids]), position_ids=torch.zeros(1, len(ids), dtype=torch.long), use_cache=False, view=view
    )
    return output.logits[0]


@lru_cache
def _full_matrix(model):
    AttentionInterface.register("full_matrix", _attend)
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("full_matrix")
    return reference


def _attend(module, query, key, value, attention_mask, scaling, *, view, **kwargs):
    return view.attend(query[0], key[0], value[0]).transpose(0, 1).unsqueeze(0), None
