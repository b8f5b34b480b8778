"""The header of a GGUF file: names and descent, the architecture's numbers, tokenizer, chat template, sampling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import io, prompts
from pipeline.errors import UserError
from pipeline.quant.job import Job

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PretrainedConfig


def add(writer: GGUFWriter, job: Job, config: PretrainedConfig) -> None:
    """Add every key of the header but the file type; raise UserError for what GGUF has no place for."""
    _add_names(writer, job)
    _add_shape(writer, config)
    _add_tokenizer(writer, job.merged, config.vocab_size)
    _add_sampling(writer, job.merged)


def _add_names(writer: GGUFWriter, job: Job) -> None:
    """Add who the model is and what it descends from."""
    model, finetune = job.model, job.params.quantize.finetune
    writer.add_type("model")
    writer.add_name(f"{model.basename} {model.size_label} {finetune}")
    writer.add_basename(model.basename)
    writer.add_size_label(model.size_label)
    writer.add_finetune(finetune)
    writer.add_license(model.license)
    writer.add_languages(list(model.languages))
    writer.add_tags(["text-generation", "medical"])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, f"{model.basename} {model.size_label}")
    if model.repo:
        writer.add_base_model_organization(0, model.repo.split("/")[0])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{model.repo}")
    writer.add_dataset_count(1)
    writer.add_dataset_name(0, job.source["name"])
    if job.source["repo"]:
        writer.add_dataset_repo_url(0, f"https://huggingface.co/datasets/{job.source['repo']}")


def _add_shape(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Add the architecture's numbers."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope(writer, config.rope_parameters)


def _add_rope(writer: GGUFWriter, rope: dict[str, Any]) -> None:
    import gguf

    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return
    if kind not in ("linear", "yarn"):
        raise UserError(f"config.json: rope_type {kind} cannot be written as GGUF here (known: default, linear, yarn)")
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope["factor"])
    if length := rope.get("original_max_position_embeddings"):
        writer.add_rope_scaling_orig_ctx_len(length)


def _add_tokenizer(writer: GGUFWriter, merged: Path, vocab_size: int) -> None:
    """Add the byte-level BPE tokenizer and the chat template, and fill the vocabulary up to the embedding's rows."""
    from gguf import TokenType

    rules = io.read_json(merged / "tokenizer.json")
    if rules["model"]["type"] != "BPE":
        raise UserError(f"{merged}/tokenizer.json: a {rules['model']['type']} tokenizer; only byte-level BPE fits here")
    tokens = {index: (text, TokenType.NORMAL) for text, index in rules["model"]["vocab"].items()}
    for token in rules["added_tokens"]:
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        tokens[token["id"]] = (token["content"], kind)
    rows = [tokens.get(index, (f"[PAD{index}]", TokenType.UNUSED)) for index in range(vocab_size)]
    merges = rules["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([text for text, _ in rows])
    writer.add_token_types([kind for _, kind in rows])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    _add_special_ids(writer, merged)
    writer.add_chat_template(prompts.template())


def _add_special_ids(writer: GGUFWriter, merged: Path) -> None:
    tokenizer = prompts.load_tokenizer(merged)
    end = prompts.end_of_turn_id(tokenizer)
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_pad_token_id(pad)
    writer.add_bos_token_id(pad)  # llama.cpp wants one; it is never added
    writer.add_add_bos_token(False)


def _add_sampling(writer: GGUFWriter, merged: Path) -> None:
    """Add the sampling defaults that the generation config names."""
    path = merged / "generation_config.json"
    settings = io.read_json(path) if path.is_file() else {}
    setters = {
        "temperature": writer.add_sampling_temp,
        "top_k": writer.add_sampling_top_k,
        "top_p": writer.add_sampling_top_p,
        "min_p": writer.add_sampling_min_p,
    }
    for key, setter in setters.items():
        if settings.get(key) is not None:
            setter(settings[key])
