"""Train a configured student on instances into a run folder: what the pipeline's `train` stage does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from compact_distill.config.models import LoraConfig, RunConfig
from compact_distill.evaluation.examine import Exam, examine
from compact_distill.evaluation.harness import Subject
from compact_distill.evaluation.result_files import STUDENT, checkpoint_label, main_value
from compact_distill.evaluation.writers import StudentWriter
from compact_distill.method.encode import EncodedProblem
from compact_distill.method.passes import ProblemDataset
from compact_distill.method.score import gains
from compact_distill.runs.environment import accelerator
from compact_distill.runs.files import move_aside
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import progress, say
from compact_distill.students.identity import commit_of, weights_hash
from compact_distill.students.load import adapter_base, load_student
from compact_distill.training.callbacks import (
    ShowProgress,
    StopInOrder,
    TrainingHistory,
    damage,
    numbered,
    trace_damage,
)
from compact_distill.training.prepare import Prepared
from compact_distill.training.trainer import CompactTrainer

# What is read again after training, at most, to show where beliefs rose: of the training's cost; tokens.
_GAIN_SHARE = 1 / 20
_GAIN_TOKENS = 1_000_000
# All attention and MLP projections, as the published runs adapt them; the names of every supported architecture.
_LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def train_student(prepared: Prepared, run: RunFolder) -> dict[str, Any]:
    """Train, going on from the newest complete checkpoint in the run folder, and save the student there.

    With `eval.every_epoch` the student sits the exam after each epoch.

    Returns:
        What the stage's summary holds: steps, loss, seconds and peak memory of all parts of the run, and how many
        rationales had which status.

    Raises:
        DataError: no rationale is left to train on.
        RunError: there are checkpoints, but none that is complete.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    config, args = prepared.config, prepared.arguments
    dataset = ProblemDataset(prepared.encoded, prepared.encoder.max_length, prepared.scorer.rule)
    transformers.set_seed(config.seed)  # adapters start from random weights
    with args.main_process_first():
        if args.process_index == 0:
            _keep_usable_checkpoints(run)
    # All weights need fp32 to take small steps; a frozen base keeps the precision it was saved in.
    model, tokenizer = load_student(config.student, dtype="auto" if config.lora else torch.float32)
    adapter = adapter_settings(config.lora, commit_of(config.student) if not Path(config.student).exists() else None)
    if hasattr(model, "peft_config"):
        say("train: the student is an adapter folder; this adapter is trained further, `lora:` is not used")
        adapter = None
    trainer = CompactTrainer(
        model=model, args=args, train_dataset=dataset, processing_class=tokenizer, peft_config=adapter
    )
    for shown_twice in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(shown_twice)
    trainer.add_callback(ShowProgress())
    if prepared.exam and config.eval.every_epoch:
        trainer.add_callback(ExamineEveryEpoch(trainer, prepared.exam, run.eval_path))
    if trainer.is_world_process_zero():
        mixed = "" if config.example == "problem" else "a plain mix, each rationale a problem of its own: "
        say(f"train: {mixed}{dataset.summary()}")
        if idle := scores_without_effect(config):
            say(f"train: rationales are answers without reasoning; counted as 0: {' and '.join(idle)}")
    history = TrainingHistory(run.training_log_path)
    trainer.add_callback(history)
    with StopInOrder() as stop:
        trainer.add_callback(stop)
        result = trainer.train(resume_from_checkpoint=True)
    card = run.student_path / "README.md"
    if trainer.is_world_process_zero() and card.exists():  # peft writes its own there, and `tidy` removes it
        say(f"train: {card} is now {move_aside(card).name}")
    trainer.save_model(str(run.student_path))
    trainer.save_state()
    return {
        "steps": result.global_step,
        "epochs": trainer.state.epoch,
        "loss": history.loss,
        "seconds": round(history.seconds, 1),
        "peak_memory_gib": round(history.memory_mib / 1024, 2),
        "problems": len(dataset),
        "inferred_answers": dataset.inferred,
        "problems_skipped": dataset.skipped,
        "statuses": {str(status): count for status, count in sorted(dataset.statuses.items())},
    }


class ExamineEveryEpoch(TrainerCallback):
    """Writes the results of each epoch to `eval/checkpoint-N` (N optimizer steps) and logs what counts of each.

    The logs reach tensorboard, wandb and trackio as `eval/TASK_accuracy` (or `.._bits_per_byte` ...). Nothing random
    of the training is touched: the student becomes the same as without this.

    A training that is stopped inside an epoch ends without an exam: the epoch has one when it goes on.

    Args:
        trainer: whose student is examined.
        exam: the benchmarks.
        folder: RUN/eval.
    """

    def __init__(self, trainer: Any, exam: Exam, folder: Path) -> None:
        self.trainer = trainer
        self.exam = exam
        self.folder = folder

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not float(state.epoch).is_integer():
            return
        model = self.trainer.model
        label = checkpoint_label(state.global_step)
        subject = Subject(label, f"{STUDENT}/{label}", weights_hash(model), state.global_step, float(state.epoch))
        writer = StudentWriter(model, self.trainer.processing_class, self.exam.text, self.exam.settings.batch_tokens)
        documents = examine(writer, subject, self.exam, self.folder / label)
        was_training = model.training
        model.eval()  # so that the trainer does not take this log for one of its training metrics
        try:
            self.trainer.log({f"eval_{d['task']['name']}_{d['result']['metric']}": main_value(d) for d in documents})
        finally:
            model.train(was_training)


def read_gains(prepared: Prepared, student: Path, epochs: float) -> Iterator[dict[str, Any]]:
    """Read a sample of the problems again with the trained student, and yield the lines of gains.jsonl.

    Before it, where the student is a new adapter, its base reads the same. The sample is evenly spread, and as large
    as a twentieth of the training's cost allows, one problem at least.

    Args:
        prepared: the run.
        student: folder of the trained student.
        epochs: how long it was trained.
    """
    config = prepared.config
    model, tokenizer = load_student(student, device=accelerator())
    with_base = hasattr(model, "peft_config") and adapter_base(config.student) is None
    chosen = prepared.instances[:: gain_stride(prepared.encoded, epochs, readings=2 if with_base else 1)]
    settings = (
        config.compatibility,
        config.text,
        config.max_length,
        config.max_tokens_per_pass,
        config.answers.infer,
    )
    with progress("gains", len(chosen) * (2 if with_base else 1)) as shown:
        if with_base:
            with model.disable_adapter():
                for line in gains(model, tokenizer, chosen, "before", *settings):
                    yield line
                    shown.advance()
        for line in gains(model, tokenizer, chosen, "after", *settings):
            yield line
            shown.advance()


def gain_stride(encoded: Sequence[EncodedProblem], epochs: float, readings: int) -> int:
    """Read each how-many-th problem again: a twentieth of the training's cost, and 1,000,000 tokens, are not exceeded.

    A step of training costs two readings at least: its forward, and a backward that is no cheaper. Where one problem
    alone costs more than that, one is read.
    """
    tokens = [problem.size for problem in encoded]
    affordable = min(_GAIN_SHARE * 2 * epochs * sum(tokens), _GAIN_TOKENS) / readings
    stride = max(1, math.ceil(sum(tokens) / max(affordable, 1)))
    while stride < len(tokens) and sum(tokens[::stride]) > affordable:  # those it meets may be the long ones
        stride += 1
    return stride


def scores_without_effect(config: RunConfig) -> list[str]:
    """Scores that the weights would use and that have nothing to read, since rationales are the answers themselves."""
    rule = str(config.weighting)
    if config.text.rationale != "answer":
        return []
    coefficients = {"adaptability": config.compatibility.adaptability, **config.compatibility.extra_scores}
    used = {name for name, value in coefficients.items() if value and "compact" in rule}
    return [name for name in ("adaptability", "local_naturalness") if name in used or name in rule]


def adapter_settings(lora: LoraConfig | None, commit: str | None) -> Any:
    """peft's settings; `commit` is that of a base on the hub, so that the adapter is always loaded onto the same."""
    if lora is None:
        return None
    import peft

    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(_LORA_TARGETS),
        task_type="CAUSAL_LM",
        revision=commit,
    )


def _keep_usable_checkpoints(run: RunFolder) -> None:
    """Move aside all checkpoints that training cannot go on from: half written, damaged, or of a trace that lacks rows.

    Folders of other names are the user's own.
    """
    for _, checkpoint in numbered(run.student_path):
        wrong = damage(checkpoint) or trace_damage(checkpoint, run.scores_path)
        if wrong is not None:
            aside = run.put_damage_aside([f"student/{checkpoint.name}"])
            say(f"train: {checkpoint.name} cannot be gone on from ({wrong}); it is now in {aside}")
