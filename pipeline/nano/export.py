"""build/nano/pretrain/last + tokenizer -> data/embedded/base: the base model as transformers reads it, in bfloat16."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.errors import UserError
from pipeline.io import atomic_dir, size_bytes
from pipeline.nano import tokenizer
from pipeline.nano.model import CausalLM, ModelConfig
from pipeline.nano.tokenizer import END_OF_TEXT

log = logging.getLogger(__name__)

KEPT = ("README.md", "bounds.json")
MOST_DIFFERENCE = 1e-3  # between our logits and transformers', float32


def main(recipe: dict) -> None:
    """Export the last checkpoint, having checked that transformers computes the same logits."""
    from transformers import AutoTokenizer, GenerationConfig

    source = Path(recipe["build"]) / "pretrain" / "last" / "model.safetensors"
    if not source.is_file():
        raise UserError(f"{source}: no checkpoint; run `python -m pipeline.nano pretrain` first")
    words = AutoTokenizer.from_pretrained(tokenizer.directory(recipe), local_files_only=True)
    end = words.convert_tokens_to_ids(END_OF_TEXT)
    model = to_transformers(load_file(source), ModelConfig(**recipe["model"]), end)
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=[end], pad_token_id=end)
    target = Path(recipe["base"])
    kept = {name: (target / name).read_bytes() for name in KEPT if (target / name).is_file()}
    with atomic_dir(target) as out:
        model.save_pretrained(out)
        words.save_pretrained(out)
        for name, content in kept.items():
            (out / name).write_bytes(content)
    log.info("%s: %.1f MB", target, size_bytes(target / "model.safetensors") / 1e6)


def to_transformers(weights: dict[str, torch.Tensor], config: ModelConfig, end_id: int):
    """Return transformers' model of the weights; raise UserError if it computes other logits than ours."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    theirs = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=True,
            attention_bias=False,
            bos_token_id=None,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )
    )
    theirs.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]})
    theirs.tie_weights()
    ours = CausalLM(config)
    ours.load_state_dict(weights)
    ids = torch.arange(2 * 96).view(2, 96) * 31 % config.vocab_size
    with torch.no_grad():
        hidden, _ = ours.hidden(ids, torch.arange(96).expand(2, 96))
        difference = (theirs.eval()(ids).logits - ours.logits(hidden)).abs().max().item()
    if difference > MOST_DIFFERENCE:
        raise UserError(f"export: transformers' logits differ by {difference:.2g}, expected at most {MOST_DIFFERENCE}")
    return theirs


def load(folder: Path) -> CausalLM:
    """Return our model, float32, with the weights of an exported directory."""
    import json

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = {name: config[name] for name in ModelConfig.__dataclass_fields__ if name in config}
    theta = config["rope_parameters"]["rope_theta"]
    model = CausalLM(ModelConfig(**sizes, **({} if "rope_theta" in sizes else {"rope_theta": theta})))
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    weights.pop("lm_head.weight", None)
    model.load_state_dict(weights)
    return model.eval()
