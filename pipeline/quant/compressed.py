"""The compressed-tensors family: FP8 and GPTQ integers by llm-compressor, for transformers and vLLM."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from pipeline import export, prompts, runtime
from pipeline.errors import UserError, nearest
from pipeline.metrics.measure import measure
from pipeline.prompts import Message
from pipeline.quant import sample, verify, weights
from pipeline.quant.job import Export, Job
from pipeline.quant.recipe import CompressedRecipe

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationScheme
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TARGETS = ["Linear"]
MAX_RELOAD_DIFF = 1e-3  # logits; the same weights in the same precision should give the same bits
USAGE = """Run it with vLLM; the directory holds tokenizer and chat template:

```
vllm serve {name}
```"""


def make(job: Job) -> Export:
    """Quantise the merged model into ``job.out`` and check that what is on disk is what was in memory."""
    scheme = _scheme(job.recipe, job.encoding)
    _check_groups(job, scheme)
    runtime.seed_torch(job.params.runtime)
    tokenizer = prompts.load_tokenizer(job.merged)
    probe = verify.probe_ids(tokenizer)
    with runtime.quiet():
        model = _load(job.merged)
        stored = model.dtype
        if not runtime.has_bf16():
            model = model.float()  # calibration would imitate bfloat16, many times slower
        _oneshot(model, tokenizer, scheme, job)
        if model.dtype != stored:
            _round(model, stored)
        in_memory = _logits(model, probe)
        _save(model, tokenizer, job.out)
        return _reopened(job, probe, in_memory)


def _scheme(recipe: CompressedRecipe, encoding: str) -> QuantizationScheme:
    """Return the preset with the recipe's own group size and format in place; raise UserError if there is no such."""
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, QuantizationScheme, preset_name_to_scheme

    if recipe.scheme not in PRESET_SCHEMES:
        raise UserError(
            f"recipes/quantize/{encoding}.yaml: scheme: compressed-tensors has no '{recipe.scheme}'"
            f"{nearest(recipe.scheme, PRESET_SCHEMES)} (known: {', '.join(sorted(PRESET_SCHEMES))})"
        )
    settings = preset_name_to_scheme(recipe.scheme, TARGETS).model_dump()
    if recipe.group_size:
        settings["weights"] |= {"group_size": recipe.group_size, "strategy": "group"}
    if recipe.format:
        settings["format"] = recipe.format
    return QuantizationScheme.model_validate(settings)


def _check_groups(job: Job, scheme: QuantizationScheme) -> None:
    """Raise UserError for every layer shape whose inputs do not fill whole groups, before any weight is loaded."""
    import torch
    from compressed_tensors.utils import match_named_modules
    from transformers import AutoConfig, AutoModelForCausalLM

    size = scheme.weights.group_size
    if not size or size < 0:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(job.merged, local_files_only=True))
    layers = match_named_modules(model, TARGETS, job.recipe.ignore)
    widths = {name.rsplit(".", 1)[-1]: layer.in_features for name, layer in layers if layer.in_features % size}
    if widths:
        raise UserError(
            *(
                f"recipes/quantize/{job.encoding}.yaml: group_size: {size} does not divide the {width} inputs of "
                f"{name}; take a divisor of {width} such as {largest_divisor(width, size)}, or add {name} to ignore"
                for name, width in widths.items()
            )
        )


def largest_divisor(width: int, most: int) -> int:
    """Return the largest divisor of ``width`` that is at most ``most``."""
    return next(size for size in range(most, 0, -1) if width % size == 0)


def _load(directory: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True).eval()


def _oneshot(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, scheme: QuantizationScheme, job: Job) -> None:
    from loguru import logger

    logger.remove()
    os.environ["LLM_COMPRESSOR_LOG_DISABLED"] = "true"  # else it logs every module to stdout
    from llmcompressor import oneshot

    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # it warns of its own tracing
    rows = calibration_rows(tokenizer, job)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=rows,
        recipe=MODIFIERS[job.recipe.modifier](scheme, job.recipe),
        num_calibration_samples=len(rows),
        max_seq_length=job.params.quantize.calibration_tokens,
        shuffle_calibration_samples=False,
    )


def calibration_rows(tokenizer: PreTrainedTokenizerBase, job: Job) -> Dataset:
    """Return training dialogues as token ids, in the very form the model was trained on, cut to the params' length."""
    from datasets import Dataset

    settings = job.params.quantize
    chosen = sample.dialogues(job.dialogues, settings.calibration_dialogues, job.params.runtime.seed)
    rows = []
    for dialogue in chosen:
        prompt, answer = prompts.example_ids(tokenizer, dialogue["messages"])
        rows.append((prompt + answer)[: settings.calibration_tokens])
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})


def _quantization(scheme: QuantizationScheme, recipe: CompressedRecipe) -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(config_groups={"linear": scheme}, ignore=list(recipe.ignore))


def _gptq(scheme: QuantizationScheme, recipe: CompressedRecipe) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return GPTQModifier(config_groups={"linear": scheme}, ignore=list(recipe.ignore), dampening_frac=recipe.dampening)


def _round(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Bring all parameters to ``dtype``, quantised weights onto the grid that their rounded scales make."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    for parameter in model.parameters():  # buffers, RoPE's angles among them, stay as precise as they are
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme and scheme.weights:
            zero, groups = getattr(module, "weight_zero_point", None), getattr(module, "weight_g_idx", None)
            module.weight.data = fake_quantize(module.weight, module.weight_scale, zero, scheme.weights, groups)


MODIFIERS: dict[str, Callable[[Any, CompressedRecipe], Any]] = {"quantization": _quantization, "gptq": _gptq}


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*offloaded modules.*")
        model.save_pretrained(directory, save_compressed=True)
    export.save_tokenizer(tokenizer, directory)
    _plain_yaml(directory / "recipe.yaml")


class _EnumsAsValues(yaml.SafeLoader):
    """YAML in which llm-compressor's Python enums read as their values."""


_EnumsAsValues.add_multi_constructor(
    "tag:yaml.org,2002:python/object/apply:", lambda loader, _, node: loader.construct_sequence(node)[0]
)


def _plain_yaml(path: Path) -> None:
    """Rewrite llm-compressor's recipe without Python objects, so that a safe loader reads it."""
    recipe = yaml.load(path.read_text(encoding="utf-8"), _EnumsAsValues)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def _reopened(job: Job, probe: Sequence[int], in_memory: np.ndarray) -> Export:
    """Load the directory as its users will; raise UserError if its logits are not those seen in memory."""
    from transformers import AutoTokenizer

    model = _load(job.out)
    difference = float(np.abs(_logits(model, probe) - in_memory).max())
    if not difference <= MAX_RELOAD_DIFF:
        raise UserError(
            f"{job.name}: loaded from disk its logits differ by {difference:.3g} from those in memory (at most "
            f"{MAX_RELOAD_DIFF} is expected); the saved form loses something: set another `format` in its recipe"
        )
    tokenizer = AutoTokenizer.from_pretrained(job.out, local_files_only=True)
    tensors = weights.stored(job.out)

    def ids(messages: Sequence[Message], answer_follows: bool) -> list[int]:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=answer_follows, return_dict=False)

    return Export(
        bits=8 * sum(tensor.bytes for tensor in tensors),
        tensor_types=dict(sorted(Counter(tensor.dtype for tensor in tensors).items())),
        chat_ids=ids,
        logits=lambda ids: _logits(model, ids),
        usage=USAGE.format(name=job.name),
        library="transformers",
        checks={"reload_diff": measure(difference, n=len(probe) - 1, unit="logit", better="lower")},
    )


def _logits(model: PreTrainedModel, ids: Sequence[int]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids[:-1]])).logits[0].float().numpy()
