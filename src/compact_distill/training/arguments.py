"""The trainer's settings: transformers' and COMPACT's own, which of them change the result, which cannot be used."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from compact_distill.config.models import MAX_LENGTH, MAX_TOKENS_PER_PASS, CompatibilityConfig, TextConfig
from compact_distill.errors import ConfigError

# Settings that change what is shown, kept, sent elsewhere, where a run computes, how fast and in how much memory; by
# their first letters. The same student comes out of it whatever they are.
_NO_CONTENT = (
    "logging_", "log_", "report_to", "run_name", "project", "trackio_", "disable_tqdm", "save_", "restore_callback_",
    "hub_", "push_to_hub", "eval_", "do_", "per_device_eval_", "batch_eval_", "prediction_", "include_",
    "load_best_model", "metric_for_best", "greater_is_better", "dataloader_num_", "dataloader_pin_", "dataloader_pre",
    "dataloader_persistent", "gradient_checkpointing", "torch_empty_cache", "torch_compile", "skip_memory_metrics",
    "use_cpu", "use_mps", "no_cuda", "local_rank", "ddp_", "fsdp", "deepspeed", "ray_", "parallelism_", "debug",
    "remove_unused_columns", "label_names", "bf16_full_eval", "fp16_full_eval", "auto_find_batch_size",
)  # fmt: skip
# Together they say how many problems a step has; how that is divided changes nothing.
_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps")
# Settings of transformers that nothing here reads.
_WITHOUT_EFFECT = {
    "label_smoothing_factor": "the loss here is COMPACT's own",
    "eval_strategy": "a run has no evaluation data of its own; use eval.every_epoch and `eval:`",
    "load_best_model_at_end": "a run has no evaluation data of its own; use `compact eval RUN --checkpoint N`",
    "prediction_loss_only": "nothing is predicted while training",
    "include_for_metrics": "nothing is predicted while training",
    "label_names": "batches are problems, not columns",
    "length_column_name": "batches are problems, not columns; their lengths are counted",
    "torch_empty_cache_steps": "the cache is not emptied; to lower memory use max_tokens_per_pass",
    "include_num_input_tokens_seen": "batches are problems, not tokens; the log holds problems_per_second",
}
# What a run cannot follow, by setting and value.
_REFUSED = {
    ("use_liger_kernel", True): "it replaces the layers that are read here",
    ("save_only_model", True): "training could not go on from such checkpoints; save_total_limit keeps few of them",
    ("optim", "lomo"): "it changes weights inside a backward, and a step here may take several",
    ("optim", "adalomo"): "it changes weights inside a backward, and a step here may take several",
    ("train_sampling_strategy", "batch_rebalance"): "it reads columns of lengths; use group_by_length",
    ("eval_on_start", True): "a run has no evaluation data of its own; `eval:` examines the base too",
    ("save_strategy", "best"): "a run has no evaluation data of its own, so that none is ever the best",
    ("average_tokens_across_devices", False): "the mean is over the problems of all ranks",
}


@dataclass
class CompactConfig(TrainingArguments):
    """transformers' TrainingArguments plus COMPACT's own; defaults of training are the published runs' (2601.13992).

    The published runs step after 4 problems, one at a time. Here the 4 are one batch, which gives the same gradient
    and shares passes of the student.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "initial learning rate; LoRA wants more, 5e-4"})
    num_train_epochs: float = field(default=5.0, metadata={"help": "epochs"})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "problems a batch and device"})
    per_device_eval_batch_size: int = field(default=4, metadata={"help": "problems an evaluation batch and device"})
    logging_steps: float = field(default=1, metadata={"help": "optimizer steps between log lines"})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "tensorboard, wandb, trackio, none"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "batches are problems, not columns"})
    compatibility: CompatibilityConfig | dict[str, Any] = field(
        default_factory=CompatibilityConfig, metadata={"help": "how rationales are scored and weighed"}
    )
    weighting: str | dict[str, Any] = field(
        default="compact", metadata={"help": "weight rule: compact, equal, random, verified, or one with an argument"}
    )
    consistency: float = field(default=0.0, metadata={"help": "lambda of the consistency term; 0 turns it off"})
    text: TextConfig | dict[str, Any] = field(default_factory=TextConfig, metadata={"help": "templates"})
    infer_answers: bool = field(default=True, metadata={"help": "infer final answers that are not stated"})
    max_length: int = field(
        default=MAX_LENGTH, metadata={"help": "tokens of prompt + completion; longer ones are dropped"}
    )
    max_tokens_per_pass: int = field(default=MAX_TOKENS_PER_PASS, metadata={"help": "tokens the student reads at once"})
    trace: str | None = field(
        default=None, metadata={"help": "file for each problem's scores and weights; default OUTPUT_DIR/scores.jsonl"}
    )

    def __post_init__(self) -> None:
        if isinstance(self.compatibility, dict):
            self.compatibility = CompatibilityConfig(**self.compatibility)
        if isinstance(self.text, dict):
            self.text = TextConfig(**self.text)
        for name, least in (("consistency", 0), ("max_length", 2), ("max_tokens_per_pass", 2)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} must be >= {least}, got {getattr(self, name)!r}")
        # transformers asks whoever wants bf16 or several ranks on a CPU to say so twice, or each rank would train a
        # student of its own; fp16 stays refused (setting_problems).
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if (self.bf16 or ranks > 1) and not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        if self.trace is None:
            self.trace = str(Path(str(self.output_dir)) / "scores.jsonl")

    def to_dict(self) -> dict[str, Any]:
        """The arguments as plain values."""
        values = super().to_dict()
        for name in ("compatibility", "text"):
            values[name] = getattr(self, name).model_dump()
        return values


def settings_that_matter(train: Mapping[str, Any], ranks: int = 1) -> dict[str, Any]:
    """What of the `train:` section changes the student: settings that differ from their defaults, by name.

    Batch size, accumulation and ranks count as their product.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(CompactConfig) if f.default is not dataclasses.MISSING}
    matters = {
        name: value
        for name, value in train.items()
        if not name.startswith(_NO_CONTENT) and name not in _STEP and value != defaults.get(name, dataclasses.MISSING)
    }
    problems = ranks
    for name in _STEP:
        problems *= int(train.get(name, defaults[name]))
    return {**matters, "problems_per_step": problems}


def setting_problems(args: CompactConfig) -> list[str]:
    """What training would die of, or ignore, in settings that transformers accepts; empty where all is well."""
    wrong = []
    defaults = {
        f.name: f.default for f in dataclasses.fields(TrainingArguments) if f.default is not dataclasses.MISSING
    }
    for name, reason in _WITHOUT_EFFECT.items():
        value = getattr(args, name)
        plain = getattr(value, "value", value)
        if plain not in (defaults.get(name), None, [], "no", False, 0):
            wrong.append(f"train.{name} has no effect here, got {plain!r}: {reason}; remove it")
    for (name, refused), reason in _REFUSED.items():
        value = getattr(args, name)
        if getattr(value, "value", value) == refused:
            what = name if refused is True else f"{name} {refused!r}"
            wrong.append(f"train.{what} cannot be used: {reason}; remove it")
    if args.neftune_noise_alpha:
        wrong.append(
            f"train.neftune_noise_alpha cannot be used, got {args.neftune_noise_alpha!r}: its noise would enter the "
            "scores, and its strength depend on which problems share a pass; remove it"
        )
    if not args.accelerator_config.even_batches:
        wrong.append(
            "train.accelerator_config.even_batches must be true, or ranks without a batch let the others wait "
            "forever; no problem counts twice for it; remove it"
        )
    if args.fp16 and args.device.type == "cpu":
        wrong.append("train.fp16 needs a GPU, and this run computes on a CPU; remove it (weights stay in fp32)")
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()  # looks for its package
    except (ImportError, RuntimeError, ValueError) as error:
        wrong.append(f"train.report_to {args.report_to!r} cannot be used: {error}; install the package or remove it")
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, RuntimeError, ValueError, AssertionError) as error:
        wrong.append(f"train.optim {str(args.optim)!r} cannot be used: {error}; install the package or remove it")
    if args.push_to_hub and args.hub_token is None:
        from huggingface_hub import get_token

        if get_token() is None:
            wrong.append("train.push_to_hub needs a login: set the environment variable HF_TOKEN or remove the key")
    return wrong
