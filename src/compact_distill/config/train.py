"""The `train:` section: transformers.TrainingArguments by its own names, checked before any work starts."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from compact_distill.config.yaml import show
from compact_distill.errors import nearest

# The published runs' settings (arXiv 2601.13992, section 4.1), and a checkpoint an epoch to go on from.
TRAIN_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-5,
    "num_train_epochs": 5,
    # The published runs step after 4 problems, one at a time; as one batch they give the same gradient, faster.
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "save_strategy": "epoch",
    "save_total_limit": 2,
}

# What the run decides itself, and what must not stand in a file.
_NOT_HERE = {
    "output_dir": "is the run's own; set `output:` at the top level",
    "seed": "is the run's own; set `seed:` at the top level",
    "resume_from_checkpoint": "is the run's own; a run resumes where it stopped",
    "hub_token": "must not stand in a file; set the environment variable HF_TOKEN",
    "do_train": "is the run's own; remove it",
    "do_eval": "is the run's own; remove it",
    "do_predict": "is the run's own; remove it",
    "local_rank": "is set by the launcher (torchrun, accelerate); remove it",
}
_POSITIVE = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate")


def with_defaults(train: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings and the defaults of the others; who gives save_steps wants checkpoints by steps."""
    by_steps = {"save_strategy": "steps"} if "save_steps" in train else {}
    return {**TRAIN_DEFAULTS, **by_steps, **train}


def check_train(train: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Check names, types and choices against transformers.TrainingArguments; this imports transformers.

    Returns:
        The settings with their values in the declared types (`yes` and `no` as booleans where one is expected),
        and (key, what is wrong with it) for each that cannot be used.
    """
    from transformers import TrainingArguments

    names = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    hints = typing.get_type_hints(TrainingArguments)
    checked: dict[str, Any] = {}
    wrong: list[tuple[str, str]] = []
    for key, value in train.items():
        if key in _NOT_HERE:
            wrong.append((key, _NOT_HERE[key]))
        elif key not in names:
            close = nearest(key, names) or "; transformers.TrainingArguments lists the names"
            wrong.append((key, f"is not a setting of transformers.TrainingArguments{close}"))
        else:
            checked[key], rule = _check_value(value, hints[key])
            if not rule and key in _POSITIVE and checked[key] <= 0:
                rule = f"must be > 0, got {show(value)}"
                rule += f"; the default is {TRAIN_DEFAULTS[key]}"
            if rule:
                wrong.append((key, rule))
    return checked, wrong


def _check_value(value: Any, hint: Any) -> tuple[Any, str]:
    choices = _choices(hint)
    if choices and isinstance(value, str) and value not in choices:
        return value, f"must be one of {', '.join(choices)}, got {value!r}{nearest(value, choices)}"
    if isinstance(value, bool) and hint in (int, float):
        return value, f"must be a number, got {show(value)}"
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))
    except PydanticUserError:  # a model of transformers' own, which brings its own configuration
        adapter = TypeAdapter(hint)
    try:
        return adapter.validate_python(value), ""
    except ValidationError:
        return value, f"must be {_type_name(hint)}, got {show(value)}"


def _choices(hint: Any) -> list[str]:
    """Values of the enumeration in a hint such as `IntervalStrategy | str`, in order."""
    for part in (hint, *typing.get_args(hint)):
        if isinstance(part, type) and issubclass(part, Enum):
            return [str(member.value) for member in part]
    return []


def _type_name(hint: Any) -> str:
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    parts = typing.get_args(hint) if typing.get_origin(hint) not in (list, dict) else ()
    names = [
        plain.get(part) or str(typing.get_origin(part) or part).replace("<class '", "").replace("'>", "")
        for part in parts or (hint,)
    ]
    return " or ".join(dict.fromkeys(names))
