"""The Qwen3 decoder that pretraining and the masked evaluation run; parameters named as transformers names them.

It is our own because pretraining needs three things at once that a stock forward pass does not give: rotary positions
with gaps, chosen attention weights as differentiable outputs, and an arbitrary mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUERY_ROWS = 256
Watch = tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the decoder; every row length divides by 256 (K-quants) and 128 (GPTQ groups)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions (Su et al., 2021) to ``x`` [batch, length, heads, head_dim] in the half-split layout."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over [batch, heads, length, head_dim], a block of query rows at a time.

    Compiled for a CPU it takes two thirds of the time of the fused kernel, forward and backward together.
    """
    blocks = []
    for start in range(0, q.shape[2], QUERY_ROWS):
        rows = q[:, :, start : start + QUERY_ROWS]
        end = start + rows.shape[2]
        scores = (rows @ k[:, :, :end].transpose(2, 3)).float() * q.shape[-1] ** -0.5
        future = torch.arange(end, device=q.device)[None, :] > torch.arange(start, end, device=q.device)[:, None]
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        blocks.append(weights.to(v.dtype) @ v[:, :, :end])
    return torch.cat(blocks, 2)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, watch: Watch
    ) -> tuple[Tensor, Tensor | None]:
        batch, length, _ = x.shape
        q = rotate(self.q_norm(self.q_proj(x).view(batch, length, self.heads, -1)), cos, sin).transpose(1, 2)
        k = rotate(self.k_norm(self.k_proj(x).view(batch, length, self.kv_heads, -1)), cos, sin).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, -1).transpose(1, 2)
        k, v = (self._per_query_head(t) for t in (k, v))
        out = causal_attention(q, k, v) if mask is None else F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return out, None if watch is None else self._log_weights(q, k, *watch)

    def _per_query_head(self, t: Tensor) -> Tensor:
        batch, _, length, size = t.shape
        groups = self.heads // self.kv_heads
        t = t[:, :, None].expand(batch, self.kv_heads, groups, length, size)
        return t.reshape(batch, self.heads, length, size)

    def _log_weights(self, q: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the log attention weights of the watched rows on their columns, [batch, heads, rows, columns]."""
        scores = (q[:, :, rows] @ k.transpose(2, 3)).float() * self.head_dim**-0.5
        future = torch.arange(k.shape[2], device=k.device)[None, :] > rows[:, None]
        scores = scores.masked_fill(future, float("-inf"))
        chosen = scores.gather(-1, columns[:, None].expand(-1, self.heads, -1, -1))
        return chosen - torch.logsumexp(scores, -1, keepdim=True)


class MLP(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, watch: Watch
    ) -> tuple[Tensor, Tensor | None]:
        attended, watched = self.self_attn(self.input_layernorm(x), cos, sin, mask, watch)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), watched


class Decoder(nn.Module):
    """Embedding, layers and final norm: the part transformers calls ``model``."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class CausalLM(nn.Module):
    """A Qwen3 language model with the embedding as its output matrix."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        inverse = config.rope_theta ** (-torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        self.register_buffer("inverse_frequencies", inverse, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        depth = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 if "embed" in name else 0.7 * self.config.hidden_size**-0.5
                residual = "o_proj" in name or "down_proj" in name
                nn.init.normal_(parameter, std=scale * depth if residual else scale)

    def hidden(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None = None, watch: Watch = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the final hidden states [batch, length, hidden] and, if asked for, log attention weights.

        ``ids`` and ``positions`` are [batch, length]; ``mask`` is boolean, broadcast to [batch, heads, length,
        length], and None means causal. ``watch`` is query rows [rows] and, for each, columns [batch, rows, columns]
        not after it; their log weights are [layers, batch, heads, rows, columns].
        """
        angles = positions[:, :, None].float() * self.inverse_frequencies
        cos, sin = angles.cos()[:, :, None, :], angles.sin()[:, :, None, :]
        x = self.model.embed_tokens(ids)
        if torch.is_autocast_enabled("cpu"):
            x = x.bfloat16()
        watched = []
        for layer in self.model.layers:
            x, weights = layer(x, cos, sin, mask, watch)
            watched.append(weights)
        return self.model.norm(x), None if watch is None else torch.stack(watched)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return next-token logits [..., vocab] of hidden states."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def forward(
        self, ids: Tensor, positions: Tensor, targets: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of every target [batch * length] and the watched log attention weights."""
        hidden, watched = self.hidden(ids, positions, watch=(rows, columns))
        losses = F.cross_entropy(self.logits(hidden).flatten(0, 1).float(), targets.flatten(), reduction="none")
        return losses, watched
