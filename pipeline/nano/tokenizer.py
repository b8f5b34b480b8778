"""Corpus -> build/nano/tokenizer: a small byte-level BPE that splits text as Qwen2 does, with Qwen3's added tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from pipeline.io import atomic_dir
from pipeline.nano import corpus
from pipeline.tasks.facts import FIELDS
from pipeline.tasks.pools import pools

log = logging.getLogger(__name__)

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)


def main(recipe: dict) -> None:
    """Train the tokenizer of the recipe and save it as transformers reads it."""
    from transformers import Qwen2Tokenizer

    trained = train(texts(recipe), recipe["model"]["vocab_size"])
    with atomic_dir(directory(recipe)) as out:
        raw = out / "raw.json"
        trained.save(str(raw))
        tokenizer = Qwen2Tokenizer(
            tokenizer_file=str(raw),
            eos_token=END_OF_TEXT,
            pad_token=END_OF_TEXT,
            bos_token=None,
            unk_token=None,
            model_max_length=recipe["model"]["max_position_embeddings"],
        )
        tokenizer.chat_template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").strip()
        raw.unlink()
        tokenizer.save_pretrained(out)
    log.info("tokenizer: %d entries", trained.get_vocab_size())


def directory(recipe: dict) -> Path:
    """Return where the trained tokenizer lies."""
    return Path(recipe["build"]) / "tokenizer"


def load(recipe: dict):
    """Return the trained tokenizer as `tokenizers` knows it."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(directory(recipe) / "tokenizer.json"))


def train(lines: Iterator[str], vocab_size: int):
    """Return a byte-level BPE of exactly ``vocab_size`` entries, the added tokens being the last."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(PLAIN_ADDED_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            max_token_length=24,
        ),
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_ADDED_TOKENS])
    return tokenizer


def texts(recipe: dict) -> Iterator[str]:
    """Yield what the merges are learned from: the training documents, part of the English, and the pools' words."""
    for name, documents in corpus.load(recipe, "train").items():
        share = recipe["tokenizer"]["english_share"] if recipe["corpus"]["sources"][name]["reader"] == "book" else 1
        yield from (document["text"] for document in documents[: int(share * len(documents))])
    for _ in range(recipe["tokenizer"]["vocabulary_weight"]):
        yield from (f"{word}。" for word in vocabulary())


def vocabulary() -> list[str]:
    """Return the words that should be few tokens each: those of the recall pools and of the prose."""
    ours = pools()
    words = [*ours.surnames, *ours.given, *ours.herbs, *ours.words, *ours.cities, *FIELDS]
    return words + [word for part in ours.parts.values() for word in part]
