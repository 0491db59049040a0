"""Train a configured student on instances into a run folder: what the pipeline's `train` stage does."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from compact_distill.answers import Verifier
from compact_distill.config.models import LoraConfig, RunConfig
from compact_distill.data.preview import used_rows
from compact_distill.evaluation.examine import Exam
from compact_distill.method.score import gains
from compact_distill.records import Instance
from compact_distill.runs.environment import peak_memory_mib
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import say
from compact_distill.students.load import load_student
from compact_distill.training.callbacks import ExamineEveryEpoch, ShowProgress, StopInOrder, TrainingHistory
from compact_distill.training.checkpoints import SEAL
from compact_distill.training.trainer import CompactConfig, CompactTrainer

_GAIN_TOKENS = 1_000_000  # read again after training, at most, to show where beliefs rose
# All attention and MLP projections, as the published runs adapt them; the names of every supported architecture.
_LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def training_arguments(config: RunConfig, output: Path, trace: Path) -> CompactConfig:
    """The trainer's settings. Raises what transformers raises where settings do not go together."""
    return CompactConfig(
        output_dir=str(output),
        trace=str(trace),
        seed=config.seed,
        compatibility=config.compatibility,
        consistency=config.consistency,
        text=config.text,
        max_length=config.max_length,
        max_tokens_per_pass=config.max_tokens_per_pass,
        **{"disable_tqdm": True, "dataloader_pin_memory": torch.cuda.is_available(), **config.train},
    )


def fit(config: RunConfig, instances: Sequence[Instance], run: RunFolder, exam: Exam) -> dict[str, Any]:
    """Train, going on from the newest complete checkpoint in the run folder, and save the student there.

    With `eval.every_epoch` the student sits the exam after each epoch.

    Returns:
        What the stage's summary holds: steps, loss, seconds and peak memory of this part of the run, and how many
        rationales had which status.

    Raises:
        RunError: there are checkpoints, but none that is complete.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    transformers.set_seed(config.seed)  # adapters start from random weights
    args = training_arguments(config, run.student_path, run.scores_path)
    with args.main_process_first():
        if args.process_index == 0:
            _drop_interrupted_checkpoints(run.student_path)
    # All weights need fp32 to take small steps; a frozen base keeps the precision it was saved in.
    model, tokenizer = load_student(config.student, dtype="auto" if config.lora else torch.float32)
    adapter = _adapter(config.lora)
    if hasattr(model, "peft_config"):
        say("train: the student is an adapter folder; this adapter is trained further, `lora:` is not used")
        adapter = None
    trainer = CompactTrainer(
        model=model, args=args, train_dataset=instances, processing_class=tokenizer, peft_config=adapter
    )
    for shown_twice in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(shown_twice)
    trainer.add_callback(ShowProgress())
    if exam and config.eval.every_epoch:
        trainer.add_callback(ExamineEveryEpoch(trainer, exam, run.eval_path))
    dataset = trainer.train_dataset
    if trainer.is_world_process_zero():
        say(f"train: {dataset.summary()}")
    trainer.add_callback(TrainingHistory(run.training_log_path))
    if trainer.is_world_process_zero():
        with Verifier() as verifier:
            run.write_rows(run.data_path, used_rows(instances, list(trainer.encoder.encode_all(instances)), verifier))
    with StopInOrder() as stop:
        trainer.add_callback(stop)
        result = trainer.train(resume_from_checkpoint=True)
    trainer.save_model(str(run.student_path))
    trainer.save_state()
    if trainer.accelerator.num_processes == 1:  # the model of several ranks may be in pieces
        run.write_rows(run.gains_path, _gains(config, instances, trainer, with_base=adapter is not None))
    return {
        "steps": result.global_step,
        "loss": result.training_loss,
        "seconds": round(result.metrics["train_runtime"], 1),
        "peak_memory_gib": round(peak_memory_mib() / 1024, 2),
        "problems": len(dataset),
        "statuses": {str(status): count for status, count in sorted(dataset.statuses.items())},
    }


def _gains(
    config: RunConfig, instances: Sequence[Instance], trainer: CompactTrainer, with_base: bool
) -> Iterator[dict[str, Any]]:
    """Lines of gains.jsonl of the student, and before that of its base, which a new adapter leaves as it was."""
    every = math.ceil(sum(trainer.train_dataset.lengths) / _GAIN_TOKENS)
    chosen = instances[::every]
    say(f"train: read {len(chosen)} problems once more, for the report")
    settings = (config.compatibility, config.text, config.max_length, config.max_tokens_per_pass)
    if with_base:
        with trainer.model.disable_adapter():
            yield from gains(trainer.model, trainer.processing_class, chosen, "before", *settings)
    yield from gains(trainer.model, trainer.processing_class, chosen, "after", *settings)


def _adapter(lora: LoraConfig | None) -> Any:
    if lora is None:
        return None
    import peft

    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(_LORA_TARGETS),
        task_type="CAUSAL_LM",
    )


def _drop_interrupted_checkpoints(student: Path) -> None:
    """Remove checkpoints that a crash left without their seal; those that have one and are damaged stay for a look."""
    for checkpoint in student.glob("checkpoint-*"):
        if not (checkpoint / SEAL).is_file():
            say(f"train: {checkpoint.name} was interrupted while it was written; removed")
            shutil.rmtree(checkpoint)
