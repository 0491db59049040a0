"""Who is compared: trainers over the same problems, with the same optimizer and the same number of optimizer steps.

`build(name, ...)` returns a trainer whose every epoch goes once over the workload's problems, `workload.step` problems
an optimizer step. TRL reads K sequences a problem; it is tried in three settings, and the best of them counts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from compact_distill.config.models import CompatibilityConfig
from compact_distill.method.passes import ProblemDataset
from compact_distill.training.trainer import CompactConfig, CompactTrainer
from naive import CONSISTENCY, PUBLISHED, NaiveTrainer
from workload import Shape, Workload, make_model, sequences, synthetic

LOGGING_STEPS = 10
TOY_VOCABULARY = 512  # of the problem that contenders rehearse on


class Shared(Protocol):
    """What all contenders of a race share: the student, its adapters, and the settings of training."""

    device: str
    rounds: int

    @property
    def dtype(self) -> torch.dtype:
        """What is multiplied."""

    @property
    def tokenizer(self) -> str:
        """Folder or hub name of the tokenizer."""

    def model(self) -> Any:
        """The student before training, on the device."""

    def adapter(self) -> Any:
        """peft's settings; None where all weights are trained, or the student is an adapter already."""

    def arguments(self, folder: str) -> dict[str, Any]:
        """Training arguments, the same for every contender; the first round warms up."""

    def builder(self, contender: str) -> Builder:
        """What makes a contender's trainer."""

    def toy(self, workload: Workload) -> Workload:
        """A problem to rehearse on."""


@dataclass(frozen=True)
class Setup:
    """A student of some shape with random weights, and the published runs' settings."""

    shape: Shape
    device: str
    dtype: torch.dtype
    lora: bool
    checkpointing: bool
    rounds: int
    tokenizer: str

    def arguments(self, folder: str) -> dict[str, Any]:
        """Training arguments, the same for every contender; the first round warms up."""
        return {
            "output_dir": folder,
            "num_train_epochs": self.rounds + 1,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "constant",
            "bf16": self.dtype == torch.bfloat16,
            "gradient_checkpointing": self.checkpointing,
            "logging_steps": LOGGING_STEPS,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": self.device == "cpu",
            "dataloader_pin_memory": self.device == "cuda",
            "seed": 0,
        }

    def adapter(self) -> Any:
        """The published runs' LoRA, or None where all weights are trained."""
        if not self.lora:
            return None
        from peft import LoraConfig

        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules=names, task_type="CAUSAL_LM")

    def model(self) -> Any:
        """The student, on the device."""
        return make_model(self.shape, self.dtype, self.device)

    def builder(self, contender: str) -> Builder:
        """What makes a contender's trainer."""
        return BUILDERS[contender]

    def toy(self, workload: Workload) -> Workload:
        """A problem of random tokens."""
        return Workload("rehearsal", tuple(synthetic(1, 2, 20, TOY_VOCABULARY, prompt=8)), step=1)


Builder = Callable[[Any, Any, Shared, Workload, str], Any]


def ours(estimator: Literal["lens", "probe"]) -> Builder:
    """CompactTrainer with all scores and the consistency term, an optimizer step's problems in one batch."""

    def build(model: Any, tokenizer: Any, setup: Shared, workload: Workload, folder: str) -> Any:
        options: dict[str, Any] = (
            {} if workload.max_tokens_per_pass is None else {"max_tokens_per_pass": workload.max_tokens_per_pass}
        )
        args = CompactConfig(
            **setup.arguments(folder),
            per_device_train_batch_size=workload.step,
            compatibility=CompatibilityConfig(**{**PUBLISHED, "estimator": estimator}),
            consistency=CONSISTENCY,
            **options,
        )
        return CompactTrainer(
            model=model,
            args=args,
            train_dataset=ProblemDataset(workload.problems, args.max_length),  # type: ignore[arg-type]
            processing_class=tokenizer,
            peft_config=setup.adapter(),
        )

    return build


def naive(model: Any, tokenizer: Any, setup: Shared, workload: Workload, folder: str) -> Any:
    """The naive COMPACT step, one problem at a time, in transformers' Trainer."""
    from transformers import TrainingArguments

    if (adapter := setup.adapter()) is not None:
        from peft import get_peft_model

        model = get_peft_model(model, adapter)
    args = TrainingArguments(
        **setup.arguments(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=workload.step,
        remove_unused_columns=False,
    )
    return NaiveTrainer(
        model=model,
        args=args,
        train_dataset=list(workload.problems),
        data_collator=lambda problems: {"problems": problems},
    )


def trl(rows_a_batch: int | None = None, pack: bool = False) -> Builder:
    """TRL's SFTTrainer on prompt + completion of each rationale.

    Args:
        rows_a_batch: sequences (packed: rows) a batch, at most; an optimizer step is a whole number of batches. None: a
            whole optimizer step's.
        pack: pack sequences into rows by `bfd`, about four sequences a row.
    """

    def build(model: Any, tokenizer: Any, setup: Shared, workload: Workload, folder: str) -> Any:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        pairs = list(sequences(workload.problems))
        dataset = Dataset.from_dict({"input_ids": [ids for ids, _ in pairs], "labels": [labels for _, labels in pairs]})
        rows, length = len(pairs), None
        if pack and setup.device == "cuda" and importlib.util.find_spec("flash_attn"):
            model.set_attn_implementation("flash_attention_2")  # the fastest that TRL knows for packed rows
        if pack:
            rows, length = _packing(dataset, workload.steps, max(1, len(pairs) // 4))
        each = max(1, rows // workload.steps)
        batch = max(size for size in range(1, min(rows_a_batch or each, each) + 1) if each % size == 0)
        args = SFTConfig(
            **setup.arguments(folder),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=-(-rows // (workload.steps * batch)),
            train_sampling_strategy="random" if batch == 1 or pack else "group_by_length",
            max_length=length,
            packing=pack,
            packing_strategy="bfd",
        )
        return SFTTrainer(
            model=model,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=setup.adapter(),
        )

    return build


def _packing(dataset: Any, steps: int, wanted: int) -> tuple[int, int]:
    """Rows and row length with which `bfd` fills a whole number of rows an optimizer step, about `wanted` in all."""
    from trl import pack_dataset

    rows = max(1, round(wanted / steps)) * steps
    lengths = [len(ids) for ids in dataset["input_ids"]]
    length = max(max(lengths), -(-sum(lengths) // rows))
    while (packed := len(pack_dataset(dataset, length, "bfd"))) > rows:
        length = max(length + 1, length * 101 // 100)
    return packed, length


def plain(model: Any, tokenizer: Any, setup: Shared, workload: Workload, folder: str) -> Any:
    """transformers' Trainer with the model's own loss, one sequence at a time: fine-tuning without other libraries."""
    from transformers import Trainer, TrainingArguments

    if (adapter := setup.adapter()) is not None:
        from peft import get_peft_model

        model = get_peft_model(model, adapter)
    pairs = list(sequences(workload.problems))
    args = TrainingArguments(
        **setup.arguments(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(pairs) // workload.steps,
    )
    return Trainer(
        model=model,
        args=args,
        train_dataset=[{"input_ids": ids, "labels": labels} for ids, labels in pairs],
        data_collator=lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in rows[0]},
    )


BUILDERS: dict[str, Builder] = {
    "lens": ours("lens"),
    "probe": ours("probe"),
    "naive": naive,
    "trl-single": trl(rows_a_batch=1),
    "trl-padded": trl(rows_a_batch=4),
    "trl-padded-16": trl(),
    "trl-packed": trl(rows_a_batch=1, pack=True),
    "plain": plain,
}


def build(name: str, model: Any, tokenizer: Any, setup: Shared, workload: Workload, folder: str) -> Any:
    """A contender's trainer, quiet."""
    from transformers import PrinterCallback, ProgressCallback

    trainer = setup.builder(name)(model, tokenizer, setup, workload, folder)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer
