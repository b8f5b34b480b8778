"""TRL's SFTTrainer with an output head that scores the answers alone, which halves a step's time on the CPU."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import PreTrainedModel
from trl import SFTTrainer

from pipeline.sft import attention
from pipeline.sft.dataset import NO_LOSS


class AnswerTrainer(SFTTrainer):
    """An SFTTrainer of a PEFT model whose loss is the mean negative log-likelihood of the answers' tokens.

    TRL's own fused head passes over the prompts on GPUs only; elsewhere it projects every position onto the
    vocabulary, and takes entropies of all of them that no one reads.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        base = self.model.get_base_model()
        packed = self.args.use_cpu and attention.replace(base)  # a GPU is quicker with one masked call
        base.forward = functools.partial(answers_nll, base, packed=packed)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Return the batches of a step and their number of answer tokens on all processes, each row counted once."""
        return super().get_batch_samples(map(self._once, epoch_iterator), num_batches, device)

    def _once(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take the labels off the rows with which accelerate fills an epoch's last batches, the epoch's first again.

        Without them a step of several processes is that of one process, whose last batch is not filled.
        """
        place = self.accelerator.gradient_state
        if place.end_of_dataloader and place.remainder > 0:  # rows of this round before the repeated ones
            size = self.args.per_device_train_batch_size
            new = place.remainder - size * self.accelerator.process_index
            batch["labels"][max(new, 0) :] = NO_LOSS
        return batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss a token; ``num_items_in_batch`` counts the tokens of a whole step on all processes."""
        nll, tokens = model(**inputs)
        if num_items_in_batch is None:
            return nll / tokens.clamp(min=1)
        return nll / num_items_in_batch * self.accelerator.num_processes  # whose gradients are averaged


def answers_nll(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    position_ids: torch.Tensor,
    labels: torch.Tensor,
    packed: bool = False,
    **unused: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed negative log-likelihood, in nats, of the labelled tokens and their number.

    All are integers of shape (rows, tokens); a label that is NO_LOSS is not scored. ``packed`` is for models whose
    attention was replaced.
    """
    extra = {"example_lengths": attention.lengths(position_ids)} if packed else {}
    body = model.base_model
    hidden = body(input_ids=input_ids, position_ids=position_ids, use_cache=False, **extra).last_hidden_state
    targets = labels[:, 1:]
    scored = targets != NO_LOSS
    logits = model.get_output_embeddings()(hidden[:, :-1][scored])
    return torch.nn.functional.cross_entropy(logits.float(), targets[scored], reduction="sum"), scored.sum()
