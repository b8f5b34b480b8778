"""What every shipped model directory carries beside its weights: tokenizer, generation config and card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import io, prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_CLASS = "Qwen2Tokenizer"
GENERIC_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
LOADING = ("is_local", "local_files_only")  # how a tokenizer was loaded is no part of it
NOT_ADVICE = (
    "For research only. The answers are not medical advice: they can be wrong, and no one has checked them. "
    "See a doctor about any health question. The training dialogues' own terms of use apply as well."
)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: str | Path) -> None:
    """Write the tokenizer's files and our chat template (``chat_template.jinja``) into ``directory``.

    The end of a turn becomes its end-of-sequence token. A tokenizer without a Python class of its own is named as
    Qwen2's, which gives the same ids: loaders outside transformers know that name and not the generic one.
    """
    tokenizer.chat_template = prompts.template()
    tokenizer.eos_token = prompts.END_OF_TURN
    tokenizer.save_pretrained(directory)
    path = Path(directory) / "tokenizer_config.json"
    settings = {key: value for key, value in io.read_json(path).items() if key not in LOADING}
    if settings["tokenizer_class"] in GENERIC_CLASSES:
        settings["tokenizer_class"] = TOKENIZER_CLASS
    io.write_json(path, settings)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end generation: the end of turn first, then the end of text if the tokenizer has it."""
    vocab = tokenizer.get_vocab()
    return [vocab[token] for token in (prompts.END_OF_TURN, END_OF_TEXT) if token in vocab]


def save_generation_config(tokenizer: PreTrainedTokenizerBase, directory: str | Path) -> None:
    """Write ``generation_config.json``: generation stops at the end of a turn and pads with the end of text."""
    from transformers import GenerationConfig

    stops = stop_ids(tokenizer)
    GenerationConfig(eos_token_id=stops, pad_token_id=stops[-1]).save_pretrained(directory)


def write_card(
    directory: str | Path,
    *,
    title: str,
    base_model: str,
    relation: str,
    library: str,
    license: str,
    languages: Sequence[str],
    datasets: Sequence[str],
    tags: Sequence[str],
    body: str,
) -> None:
    """Write the model card ``README.md``: the hub's front matter, the title, a warning and ``body`` (Markdown).

    ``relation`` is the hub's ``base_model_relation``: adapter, finetune or quantized.
    """
    front: dict[str, Any] = {
        "base_model": base_model,
        "base_model_relation": relation,
        "library_name": library,
        "pipeline_tag": "text-generation",
        "license": license,
        "language": list(languages),
        "datasets": list(datasets),
        "tags": list(tags),
    }
    header = yaml.safe_dump({key: value for key, value in front.items() if value}, sort_keys=False, allow_unicode=True)
    io.write_text(Path(directory) / "README.md", f"---\n{header}---\n\n# {title}\n\n{NOT_ADVICE}\n\n{body.strip()}\n")
