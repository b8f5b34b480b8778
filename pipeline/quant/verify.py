"""Is an export still the merged model? The same token ids for the same dialogues, and how far the logits moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import prompts
from pipeline.errors import UserError
from pipeline.metrics.measure import measure
from pipeline.prompts import Message
from pipeline.quant import sample
from pipeline.quant.job import Export, Job

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = [
    {"role": "user", "content": "医生您好，我这三天一直咳嗽、流清涕，夜里有点发烧，应该怎么办？"},
    {"role": "assistant", "content": "您好，听起来像是普通感冒。请多喝温水，注意休息；三天不退，请及时就医。"},
]


def probe_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of the fixed dialogue on which logits are compared."""
    prompt, answer = prompts.example_ids(tokenizer, PROBE)
    return prompt + answer


def parity(job: Job, export: Export) -> dict[str, Any]:
    """Compare the export's token ids of training dialogues, with and without the answer, to the merged model's.

    Raises UserError, with the first difference, if any dialogue differs.
    """
    tokenizer = prompts.load_tokenizer(job.merged)
    chosen = sample.dialogues(job.dialogues, job.params.quantize.verify_dialogues, job.params.runtime.seed)
    problems = [problem for dialogue in chosen if (problem := _difference(tokenizer, export, dialogue))]
    if problems:
        raise UserError(
            f"{job.name}: token ids of {len(problems)} of {len(chosen)} training dialogues are not those of "
            f"{job.merged}; first {problems[0]}; the tokenizer or its split rule does not survive this format"
        )
    return {
        "dialogues": len(chosen),
        "mismatches": measure(len(problems), n=len(chosen), unit="dialogues", better="lower"),
    }


def _difference(tokenizer: PreTrainedTokenizerBase, export: Export, dialogue: dict[str, Any]) -> str | None:
    messages = [m | {"content": prompts.defuse(tokenizer, m["content"])} for m in dialogue["messages"]]
    for part, answer_follows in ((messages[:-1], True), (messages, False)):
        expected = _merged_ids(tokenizer, part, answer_follows)
        found = export.chat_ids(part, answer_follows)
        if found != expected:
            return f"{dialogue['id']}: {_first_difference(tokenizer, expected, found)}"
    return None


def _merged_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer_follows: bool) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=answer_follows, return_dict=False)


def _first_difference(tokenizer: PreTrainedTokenizerBase, expected: list[int], found: list[int]) -> str:
    pairs = enumerate(zip(expected, found, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(found)))
    texts = [repr(tokenizer.decode(ids[place : place + 4])) for ids in (expected, found)]
    return f"at token {place}: expected {texts[0]}, found {texts[1]}"


def logits(job: Job, export: Export) -> dict[str, Any]:
    """Compare logits on the fixed dialogue with transformers in float32.

    Raises UserError if any is not finite, or if an unquantised export differs by more than the params allow.
    """
    ids = probe_ids(prompts.load_tokenizer(job.merged))
    found = export.logits(ids)
    if not np.isfinite(found).all():
        raise UserError(f"{job.name}: not all logits of the fixed dialogue are finite; the export is broken")
    expected = reference(job.merged, ids)
    difference = float(np.abs(found - expected).max())
    limit = job.params.quantize.max_logit_diff
    if export.exact and difference > limit:
        raise UserError(
            f"{job.name}: logits differ by {difference:.3g} from transformers, quantize.max_logit_diff allows {limit}; "
            "the export does not compute the same model"
        )
    agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    return {
        "max_diff": measure(difference, n=len(ids) - 1, unit="logit", better="lower"),
        "argmax_agreement": measure(agreement, n=len(ids) - 1, better="higher"),
        **export.checks,
    }


def reference(merged: Path, ids: Sequence[int]) -> np.ndarray:
    """Return the merged model's float32 logits [len - 1, vocabulary] that predict ids[1:]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, local_files_only=True).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids[:-1]])).logits[0].numpy()
