"""What a run would read, drop and do: `compact validate --dry-run`. Needs the tokenizer, not the model."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from compact_distill.config.models import RunConfig
from compact_distill.method.encode import EncodedProblem, Encoder
from compact_distill.records import Instance, RationaleStatus
from compact_distill.students.load import load_tokenizer


@dataclass(frozen=True)
class TeacherPreview:
    """One teacher's rationales: how many have which status, and the lengths of those that take part (tokens)."""

    name: str
    statuses: Counter[RationaleStatus]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Preview:
    """Counts and tokens of a run, before it starts; `str()` is the page that is printed."""

    problems: int
    without_rationale: int
    prompt_tokens: int
    teachers: tuple[TeacherPreview, ...]
    steps: int
    epochs: float

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens that the student reads in an epoch: each prompt once, each completion once."""
        return self.prompt_tokens + sum(sum(teacher.lengths) for teacher in self.teachers)

    def __str__(self) -> str:
        left_out = [status for status in RationaleStatus if status != RationaleStatus.OK]
        shown = [status for status in left_out if any(teacher.statuses[status] for teacher in self.teachers)]
        rows = [["teacher", "rationales", "used", *shown, "tokens: median", "longest", "all"]]
        for teacher in self.teachers:
            used = teacher.lengths
            lengths = [f"{statistics.median(used):.0f}", str(max(used)), str(sum(used))] if used else ["-", "-", "0"]
            counts = [str(teacher.statuses[status]) for status in (RationaleStatus.OK, *shown)]
            rows.append([teacher.name, str(teacher.statuses.total()), *counts, *lengths])
        left = f", {self.without_rationale} left out: no usable rationale" if self.without_rationale else ""
        lines = [
            f"problems: {self.problems}{left}",
            *_columns(rows),
            f"tokens an epoch: {self.tokens_per_epoch}, of them prompts: {self.prompt_tokens}",
            f"optimizer steps: {self.steps} in {self.epochs:g} epochs",
        ]
        return "\n".join(lines)


def preview(config: RunConfig, instances: Sequence[Instance]) -> Preview:
    """Encode all problems with the student's tokenizer and count."""
    encoder = Encoder(
        load_tokenizer(config.student),
        config.text,
        min(config.max_length, config.max_tokens_per_pass),
        config.compatibility.thinking_expressions,
    )
    statuses: dict[str, Counter[RationaleStatus]] = {}
    lengths: dict[str, list[int]] = {}
    usable: list[EncodedProblem] = []
    for problem in encoder.encode_all(instances):
        for name, branch, status in zip(problem.teachers, problem.branches, problem.statuses, strict=True):
            statuses.setdefault(name, Counter())[status] += 1
            lengths.setdefault(name, []).extend([len(branch)] if branch is not None else [])
        if problem.present:
            usable.append(problem)
    return Preview(
        problems=len(usable),
        without_rationale=len(instances) - len(usable),
        prompt_tokens=sum(len(problem.prompt) for problem in usable),
        teachers=tuple(TeacherPreview(name, statuses[name], tuple(lengths[name])) for name in statuses),
        steps=optimizer_steps(len(usable), config.train),
        epochs=config.train["num_train_epochs"],
    )


def optimizer_steps(problems: int, train: dict[str, float]) -> int:
    """Steps of a run on one device, as transformers' Trainer counts them."""
    if train.get("max_steps", -1) > 0:
        return int(train["max_steps"])
    batches = problems / train["per_device_train_batch_size"]
    batches = math.floor(batches) if train.get("dataloader_drop_last") else math.ceil(batches)
    steps_per_epoch = max(math.ceil(batches / train["gradient_accumulation_steps"]), 1)
    return math.ceil(train["num_train_epochs"] * steps_per_epoch)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines: names to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
