"""Examine the student after each epoch, while it trains: the curve of what it learns and forgets."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from compact_distill.evaluation.examine import Exam, examine
from compact_distill.evaluation.harness import Subject
from compact_distill.evaluation.results import STUDENT, checkpoint_label
from compact_distill.evaluation.writers import StudentWriter


class ExamineEveryEpoch(TrainerCallback):
    """Writes the results of each epoch to `eval/checkpoint-N` (N optimizer steps) and logs the accuracies.

    The logs reach tensorboard, wandb and trackio as `eval/TASK_accuracy`. Nothing random of the training is touched:
    the student becomes the same as without this.

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
        model = self.trainer.model
        label = checkpoint_label(state.global_step)
        subject = Subject(label, f"{STUDENT}/{label}", _weights_hash(model), state.global_step, float(state.epoch))
        writer = StudentWriter(model, self.trainer.processing_class, self.exam.text, self.exam.settings.batch_tokens)
        documents = examine(writer, subject, self.exam, self.folder / label)
        was_training = model.training
        model.eval()  # so that the trainer does not take this log for one of its training metrics
        try:
            self.trainer.log({f"eval_{d['task']['name']}_accuracy": d["result"]["accuracy"] for d in documents})
        finally:
            model.train(was_training)


@torch.no_grad()
def _weights_hash(model: Any) -> str:
    """SHA-256 of the weights that are trained, by name."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
