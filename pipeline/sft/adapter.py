"""A trained LoRA adapter to a PEFT directory that others can load: weights, config, tokenizer and card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import export, models
from pipeline.config import Params

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

CARD = """A LoRA adapter of rank {r} (alpha {alpha}) for `{base}`, trained on Chinese medical dialogues.

```python
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "path/to/this/adapter")
```

The chat template beside it is Qwen3's with thinking off; prompts must be rendered with it.
"""


def save(model: PeftModel, tokenizer: PreTrainedTokenizerBase, params: Params, directory: Path) -> None:
    """Write a PEFT adapter directory that names its base model by hub id and revision, or by the recipe's name."""
    recipe = models.read(params.model)
    base = recipe.repo or params.model
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base, recipe.revision
    config.target_modules = sorted(config.target_modules)  # a set, whose order changes from run to run
    model.save_pretrained(directory, save_embedding_layers=False)  # "auto" would ask the hub for the base's config
    export.save_tokenizer(tokenizer, directory)
    export.write_card(
        directory,
        title=f"{recipe.basename}-{recipe.size_label} medical dialogue LoRA",
        base_model=base,
        relation="adapter",
        library="peft",
        license=recipe.license,
        languages=recipe.languages,
        datasets=(),
        tags=("lora", "sft", "trl", "medical"),
        body=CARD.format(r=params.lora.r, alpha=params.lora.alpha, base=base),
    )
