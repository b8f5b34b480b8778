"""train: fine-tune a LoRA adapter of artifacts/base on data/chat; write artifacts/adapter and eval/train.

Launched by accelerate, in one process or several. A run that was cut short resumes from its newest checkpoint.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import export, io, prompts, recipes, runtime, stage
from pipeline.config import Params
from pipeline.errors import UserError
from pipeline.sft import adapter, checkpoints, checks, dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from trl import SFTConfig, SFTTrainer

log = logging.getLogger(__name__)

BASE = Path("artifacts/base")
SPLITS = {"train": Path("data/chat/train.jsonl"), "validation": Path("data/chat/validation.jsonl")}
ADAPTER = Path("artifacts/adapter")
CURVE = Path("eval/train")


def main(params: Params) -> None:
    """Read artifacts/base and data/chat; write artifacts/adapter and eval/train."""
    if problems := checks.problems(BASE, list(SPLITS.values()), params.lora, params.train):
        raise UserError(*problems)
    runtime.seed_torch(params.runtime)
    run = checkpoints.folder(params, _inputs(params))
    args = arguments(params, run)
    if not args.should_save:
        logging.disable(logging.INFO)  # the first process speaks for all
    log.info("train: %s arithmetic (train.bf16: %s)", "bfloat16" if args.bf16 else "float32", params.train.bf16)
    with stage.timed("train") if args.should_save else nullcontext({}) as timings:
        tokenizer = prompts.load_tokenizer(BASE)
        trainer, counts = prepare(params, args, tokenizer)
        timings.update(tokens_per_second=fit(trainer, run, counts["train"]["tokens"]))
        if args.should_save:
            write(trainer, tokenizer, params, counts)
            shutil.rmtree(run)


def _inputs(params: Params) -> list[Path]:
    base = [path for path in sorted(BASE.iterdir()) if path.suffix in (".safetensors", ".json")]
    template = Path(prompts.__file__).with_suffix(".jinja")
    return [*base, *SPLITS.values(), recipes.ROOT / "accelerate" / f"{params.train.accelerate}.yaml", template]


def arguments(params: Params, run: Path) -> SFTConfig:
    """Return the trainer's arguments; creating them joins the processes of a launch together."""
    from trl import SFTConfig

    train = params.train
    on_cpu = checks.on_cpu(train)
    return SFTConfig(
        output_dir=str(run),
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup,  # below 1, a share of the steps
        weight_decay=train.weight_decay,
        bf16=checks.bf16(train),
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=params.runtime.seed,
        data_seed=params.runtime.seed,
        eval_strategy="steps",
        save_strategy="steps",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        restore_callback_states_from_checkpoint=True,
        eval_on_start=checkpoints.newest(run) is None,
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
    )


def prepare(
    params: Params, args: SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[SFTTrainer, dict[str, Counter]]:
    """Return the trainer of a LoRA adapter on the base model in float32, and the counts of its data by split."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, EarlyStoppingCallback, PrinterCallback

    from pipeline.sft.curve import Course
    from pipeline.sft.trainer import AnswerTrainer

    cache = Path(args.output_dir) / f"rows-{args.process_index}"
    splits, counts = dataset.rows(SPLITS, tokenizer, params.train, cache)
    lora = LoraConfig(
        r=params.lora.r,
        lora_alpha=params.lora.alpha,
        lora_dropout=params.lora.dropout,
        target_modules=checks.targets(params.lora),
        task_type="CAUSAL_LM",
    )
    trainer = AnswerTrainer(
        model=AutoModelForCausalLM.from_pretrained(BASE, dtype="float32", local_files_only=True),
        args=args,
        data_collator=dataset.collator(export.stop_ids(tokenizer)[-1]),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[Course(params.train.evals), EarlyStoppingCallback(params.train.early_stopping)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, counts


def fit(trainer: SFTTrainer, run: Path, tokens: int) -> int:
    """Train to the end, from the run's newest checkpoint if there is one; return tokens a second, with evaluations."""
    checkpoint = checkpoints.newest(run)
    start = 0
    if checkpoint is not None:
        log.info("train: resuming from %s", checkpoint)
        start = io.read_json(checkpoint / checkpoints.STATE)["epoch"]
    metrics = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
    trainer.accelerator.wait_for_everyone()
    return round(tokens * (trainer.state.epoch - start) / metrics["train_runtime"])


def write(trainer: SFTTrainer, tokenizer: PreTrainedTokenizerBase, params: Params, counts: dict[str, Counter]) -> None:
    """Write the adapter of the best evaluation, and the course of the run."""
    from pipeline.sft import curve

    model = trainer.accelerator.unwrap_model(trainer.model)
    with io.atomic_dir(ADAPTER) as partial:
        adapter.save(model, tokenizer, params, partial)
    with io.atomic_dir(CURVE) as partial:
        curve.write(trainer.state, partial)
        summary = curve.summary(trainer.state, counts, model.get_nb_trainable_parameters()[0])
        io.write_json(partial / "summary.json", summary)
    log.info("train: best eval loss %.4f at step %d", trainer.state.best_metric, trainer.state.best_global_step)


if __name__ == "__main__":
    stage.run(main)
