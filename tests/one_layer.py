"""A one-layer GGUF model of random weights, of any head length and architecture, without a tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WIDTH = 64


def write_gguf(path: Path, length: int, architecture: str = "llama") -> None:
    """Write a one-layer model of random weights, 2 heads of some length, without a tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(WIDTH)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_key_length(length)
    writer.add_value_length(length)
    writer.add_rope_dimension_count(length)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_sections([length // 2, 0, 0, 0])
    writer.add_num_deepstack_layers(0)
    random = np.random.default_rng(0)
    sizes = dict.fromkeys(["token_embd", "output", *(f"blk.0.ffn_{part}" for part in ("gate", "up", "down"))], (64, 64))
    sizes |= dict.fromkeys([f"blk.0.attn_{part}" for part in "qkv"], (2 * length, WIDTH))
    for name, size in {**sizes, "blk.0.attn_output": (WIDTH, 2 * length)}.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.3, size).astype(np.float32))
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    if architecture == "qwen3vl":
        for part in "qk":
            writer.add_tensor(f"blk.0.attn_{part}_norm.weight", np.ones(length, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
