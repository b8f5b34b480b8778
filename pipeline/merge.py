"""merge: fold artifacts/adapter into artifacts/base; write artifacts/merged and eval/merge.json.

The merge is done in float32 from the unquantised base. What it changed is measured twice on validation dialogues,
both times in float32 arithmetic: in memory, before rounding to ``merge.dtype``, and reloaded from the disk after it.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import export, io, models, prompts, runtime, stage
from pipeline.config import Merge, Params
from pipeline.errors import UserError
from pipeline.metrics import divergence
from pipeline.metrics.measure import measure

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

BASE = Path("artifacts/base")
ADAPTER = Path("artifacts/adapter")
VALIDATION = Path("data/chat/validation.jsonl")
MERGED = Path("artifacts/merged")
RESULT = Path("eval/merge.json")
DIALOGUES = 16  # to compare logits on

CARD = """`{base}` with a LoRA adapter merged in, trained on Chinese medical dialogues.

```python
model = AutoModelForCausalLM.from_pretrained("path/to/this/model")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/model")
inputs = tokenizer.apply_chat_template([{{"role": "user", "content": "..."}}], add_generation_prompt=True,
                                       return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))
```

The chat template is Qwen3's with thinking off. Weights are {dtype}, merged in float32.
"""


def main(params: Params) -> None:
    """Read artifacts/base and artifacts/adapter; write artifacts/merged and eval/merge.json."""
    from peft import PeftModel

    _check_inputs()
    runtime.seed_torch(params.runtime)
    with stage.timed("merge"), io.atomic_dir(MERGED) as partial:
        tokenizer = prompts.load_tokenizer(ADAPTER)
        sequences = validation_ids(tokenizer)
        adapted = PeftModel.from_pretrained(load(BASE), ADAPTER).eval()
        merged = copy.deepcopy(adapted).merge_and_unload(safe_merge=True)
        differences = {"in_memory": compare(adapted, merged, sequences)}
        save(merged, tokenizer, params, partial)
        del merged
        differences["reloaded"] = compare(adapted, load(partial), sequences)
        check(differences, params.merge)
    tokens = sum(map(len, sequences))
    io.write_json(RESULT, {"dtype": params.merge.dtype, "dialogues": len(sequences), "tokens": tokens, **differences})
    for name, found in differences.items():
        log.info("merge: %s: %s", name, ", ".join(f"{key} {found[key]['value']}" for key in found))


def _check_inputs() -> None:
    made_by = {BASE / "config.json": "base", ADAPTER / "adapter_model.safetensors": "train", VALIDATION: "convert"}
    missing = [path for path in made_by if not path.exists() or path.stat().st_size == 0]
    if missing:
        raise UserError(*(f"{path}: missing or empty; make it with `dvc repro {made_by[path]}`" for path in missing))


def validation_ids(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of the first DIALOGUES validation dialogues, prompt and answer."""
    records = itertools.islice(io.read_jsonl(VALIDATION), DIALOGUES)
    examples = (prompts.example_ids(tokenizer, record["messages"]) for record in records)
    return [prompt + answer for prompt, answer in examples]


def load(directory: Path) -> PreTrainedModel:
    """Load a model for inference in float32, which holds weights of any dtype exactly."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype="float32", local_files_only=True).eval()


def compare(reference: PeftModel, model: PreTrainedModel, sequences: Sequence[list[int]]) -> dict[str, Any]:
    """Return how far ``model``'s next-token distributions are from ``reference``'s over all tokens of the sequences."""
    largest, klds = 0.0, []
    for ids in sequences:
        expected, got = logits(reference, ids), logits(model, ids)
        largest = np.maximum(largest, np.abs(expected - got).max())  # unlike max, keeps a nan
        klds.append(divergence.kld(expected, got))
    kld = np.concatenate(klds)
    stderr = float(kld.std(ddof=1) / len(kld) ** 0.5)
    return {
        "max_logit_diff": measure(largest, n=len(kld), better="lower"),
        "kld": measure(kld.mean(), stderr=stderr, n=len(kld), unit="nats/token", better="lower"),
    }


def logits(model: PreTrainedModel, ids: list[int]) -> np.ndarray:
    """Return the logits of a sequence as float32 [tokens, vocabulary]."""
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def check(differences: dict[str, dict], limits: Merge) -> None:
    """Raise UserError with every difference above its limit; a value that is not a number is above any."""
    bounds = {"max_logit_diff": limits.max_logit_diff, "max_kld": limits.max_kld}
    problems = [
        f"merge.{bound}: the merged model ({where.replace('_', ' ')}) is {value} from the adapter, above {limit}; "
        "take -S merge.dtype=float32 if the dtype is to blame, or raise the limit"
        for where, found in differences.items()
        for bound, limit in bounds.items()
        if not float(value := found[bound.replace("max_kld", "kld")]["value"]) <= limit
    ]
    if problems:
        raise UserError(*problems)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: Params, directory: Path) -> None:
    """Write a complete model directory in ``merge.dtype``."""
    import torch

    recipe = models.read(params.model)
    model.config.update({"use_cache": True, "eos_token_id": prompts.end_of_turn_id(tokenizer)})
    model.to(getattr(torch, params.merge.dtype)).save_pretrained(directory)
    export.save_tokenizer(tokenizer, directory)
    export.save_generation_config(tokenizer, directory)
    export.write_card(
        directory,
        title=f"{recipe.basename}-{recipe.size_label} fine-tuned on medical dialogues",
        base_model=recipe.repo or params.model,
        relation="finetune",
        library="transformers",
        license=recipe.license,
        languages=recipe.languages,
        datasets=(),
        tags=("sft", "lora", "medical"),
        body=CARD.format(base=recipe.repo or params.model, dtype=params.merge.dtype),
    )


if __name__ == "__main__":
    stage.run(main)
