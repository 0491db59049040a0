"""A run's YAML file: read, completed, written in full, and begun by `compact init`."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from compact_distill.config.models import TRAIN_DEFAULTS, RunConfig, source_problems
from compact_distill.config.yaml import Document, key_path, messages, parse, show
from compact_distill.errors import ConfigError, nearest

_WIDTH = 120
_HEAD = """\
# A run of compact-distill. Check it:   compact validate THIS_FILE --dry-run
#                           Start it:   compact run THIS_FILE
# Relative paths start at the current folder. A line that starts with # is off; what it shows is an example.

"""
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
# What TRL, peft, axolotl, LLaMA-Factory and lm-eval call a key, and what it is here.
_OTHER_NAMES = {
    other: meaning
    for meaning, others in {
        "did you mean `student:`?": "model base_model model_name model_name_or_path",
        "did you mean `rationales:`?": "data dataset datasets data_path dataset_name train_dataset train_file",
        "did you mean `lora: {r: 16}`?": "rank lora_r lora_rank",
        "did you mean `lora: {alpha: 32}`?": "lora_alpha",
        "did you mean `lora: {dropout: 0.1}`?": "lora_dropout",
        "leave it out: adapters go on all attention and MLP projections": "target_modules lora_target_modules",
        "leave it out: quantised students cannot be trained here": "load_in_4bit load_in_8bit",
        "did you mean `train: {learning_rate: ...}`?": "lr",
        "did you mean `train: {num_train_epochs: 5}`?": "epochs num_epochs",
        "did you mean `train: {per_device_train_batch_size: 4}`?": "batch_size micro_batch_size per_device_batch_size",
        "did you mean `max_length:`, at the top level?": "max_seq_length max_seq_len sequence_len cutoff_len",
        "did you mean `eval: {learned: [...], retained: [...]}`?": "task tasks",
    }.items()
    for other in others.split()
}
_POSITIVE = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate")


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read, check and complete a run's YAML file.

    Args:
        path: the file.
        overrides: values that replace the file's, by dotted key: {"train.learning_rate": 1e-4}.

    Raises:
        ConfigError: everything that is wrong with the file, at once.
    """
    config, problems = load_sound_part(path, overrides)
    if config is None or problems:
        raise ConfigError(problems)
    return config


def load_sound_part(path: str | Path, overrides: Mapping[str, Any] | None = None) -> tuple[RunConfig | None, list[str]]:
    """Read a file as `load_config` does, so that what is sound in it can be checked further.

    Returns:
        The configuration without the top-level keys that are wrong (None where it needs one of them), and everything
        that is wrong with the file.
    """
    path = Path(path)
    try:
        text = _read(path)
    except ConfigError as error:
        return None, error.problems
    try:
        document = parse(text)
    except ConfigError as error:
        return None, [f"{path}, {problem}" for problem in error.problems]
    data, unset = _with_overrides(document.data, overrides or {})
    config, found = _validate(data)
    if config is None:
        wrong = {location[0] for location, _ in found if location}
        config, _ = _validate({key: value for key, value in data.items() if key not in wrong})
    replaced = [tuple(dotted.split(".")) for dotted in overrides or {}]
    over = [text for location, text in found if any(location[: len(keys)] == keys for keys in replaced)]
    placed = [(_line(document, location), text) for location, text in found if text not in over]
    placed = sorted(document.problems + placed, key=lambda item: item[0] or math.inf)
    problems = [f"{path}, line {line}: {text}" if line else f"{path}: {text}" for line, text in placed]
    return config, problems + unset + [f"set over {path}: {text}" for text in over]


def config_from(data: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Check and complete a run's settings that are already in memory. Raises ConfigError with everything wrong."""
    merged, unset = _with_overrides(dict(data), overrides or {})
    config, found = _validate(merged)
    if config is None or unset:
        raise ConfigError([message for _, message in found] + unset)
    return config


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML, complete with defaults; `load_config` reads the same configuration from it."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; `compact init` writes a configuration to start from") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; name the YAML file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8, byte {error.start} is not; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def _with_overrides(data: dict[str, Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    merged: dict[str, Any] = dict(data)
    problems = []
    for dotted, value in overrides.items():
        section = merged
        *parents, last = dotted.split(".")
        for parent in parents:
            child = section.get(parent)
            if child is not None and not isinstance(child, dict):
                problems.append(f"{dotted} cannot be set: {parent!r} holds no keys; set {parent!r} itself")
                break
            section[parent] = section = dict(child or {})
        else:
            section[last] = value
    return merged, problems


def _validate(data: dict[str, Any]) -> tuple[RunConfig | None, list[tuple[tuple[str | int, ...], str]]]:
    """The configuration, or None and all that is wrong, each with the place where it stands."""
    config: RunConfig | None = None
    found: list[tuple[tuple[str | int, ...], str]] = []
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        told = messages(error, RunConfig, _OTHER_NAMES)
        found = [(place, _shown_its_place(place) or text) for place, text in told if place]
        teachers = data.get("teachers")
        listed = teachers if isinstance(teachers, list | tuple) else [teachers] if teachers else []
        names = [t.get("name", i) if isinstance(t, dict) else i for i, t in enumerate(listed)]
        found += [((), text) for text in source_problems(data.get("rationales"), names, data.get("problems"))]
    train = data.get("train")
    if config is not None or isinstance(train, dict):
        checked, wrong = check_train(config.train if config else train or {})
        found += [(("train", key), f"{key_path(('train', key))} {rule}") for key, rule in wrong]
        config = config.model_copy(update={"train": checked}) if config and not wrong else None
    return config, found


def _shown_its_place(place: tuple[str | int, ...]) -> str:
    unknown = len(place) == 1 and place[0] not in RunConfig.model_fields
    told = under_train(place[0]) if unknown else ""
    return told and f"{place[0]} is not a known key{told}"


def under_train(key: str | int) -> str:
    """What to say of a setting of `train:` that stands outside it, as other trainers have it; else nothing."""
    return "; it belongs under `train:`" if key in _train_hints() and key not in _NOT_HERE else ""


def _train_hints() -> dict[str, Any]:
    """Names and types of the settings of transformers.TrainingArguments; this imports transformers."""
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments) if field.init}


def _line(document: Document, location: tuple[str | int, ...]) -> int | None:
    """Line of the key itself, or of the nearest section around it that stands in the file."""
    for length in range(len(location), 0, -1):
        if location[:length] in document.lines:
            return document.lines[location[:length]]
    return None


# ---- the `train:` section: transformers.TrainingArguments by its own names


def check_train(train: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Check names, types and choices against transformers.TrainingArguments; this imports transformers.

    Returns:
        The settings with their values in the declared types (`yes` and `no` as booleans where one is expected),
        and (key, what is wrong with it) for each that cannot be used.
    """
    hints = _train_hints()
    checked: dict[str, Any] = {}
    wrong: list[tuple[str, str]] = []
    for key, value in train.items():
        if key in _NOT_HERE:
            wrong.append((key, _NOT_HERE[key]))
        elif key not in hints:
            close = f"; {_OTHER_NAMES[key]}" if key in _OTHER_NAMES else nearest(key, hints)
            close = close or "; transformers.TrainingArguments lists the names"
            wrong.append((key, f"is not a setting of transformers.TrainingArguments{close}"))
        else:
            checked[key], rule = _check_value(value, hints[key])
            if not rule and key in _POSITIVE and checked[key] <= 0:
                rule = f"must be > 0, got {show(value)}"
                rule += f"; the default is {TRAIN_DEFAULTS[key]}{' with LoRA' if key == 'learning_rate' else ''}"
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


# ---- the file that `compact init` writes


def template() -> str:
    """A valid configuration that names every key, its default, its choices and its meaning."""
    text = _HEAD
    for name, field in RunConfig.model_fields.items():
        section = _section(field)
        default = field.get_default(call_default_factory=True)
        if section is None and not isinstance(default, dict):
            # Rationales are the one source that the template switches on: a run needs one.
            text += _setting(name, field, indent="", on=name == "rationales")
            continue
        if section is None:
            body = "".join(f"  {key}: {_value(value)}\n" for key, value in default.items())
        else:
            body = "".join(_setting(key, inner, indent="  ") for key, inner in section.model_fields.items())
        if isinstance(default, tuple):
            body = _as_list_item(body)
        block = f"{name}:\n{body}"
        on = bool(default) and any(not line.startswith("  #") for line in body.splitlines())
        text += f"\n{_comment(field)}\n{block if on else _switched_off(block)}\n"
    return text.replace("\n\n\n", "\n\n").rstrip("\n") + "\n"


def _setting(name: str, field: FieldInfo, indent: str, on: bool = False) -> str:
    """`key: value  # meaning`; a key without a default of its own shows its example, switched off unless `on`."""
    default = field.get_default(call_default_factory=True)
    if field.is_required() or (on and field.examples):
        text = f"{indent}{name}: {_value((field.examples or ['...'])[0])}"
    elif default in (None, (), {}) and field.examples:
        text = f"{indent}# {name}: {_value(field.examples[0])}"
    else:
        text = f"{indent}{name}: {_value(default)}"
    meaning = f"  {_comment(field)}"
    return f"{text}{meaning}\n" if len(text) + len(meaning) <= _WIDTH else f"{indent}{meaning.strip()}\n{text}\n"


def _comment(field: FieldInfo) -> str:
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    listed = f" ({' | '.join(choices)})" if choices else ""
    return f"# {field.description}{listed}"


def _value(value: Any) -> str:
    """One line of YAML."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=10_000)
    return text.removesuffix("...\n").strip()


def _as_list_item(body: str) -> str:
    return "".join(f"  {'- ' if i == 0 else '  '}{line[2:]}\n" for i, line in enumerate(body.splitlines()))


def _switched_off(block: str) -> str:
    """Comment a whole section out; its optional keys, comments already, become part of the example."""
    lines = [re.sub("^( +)# ", r"\1", line) for line in block.splitlines()]
    return "".join(f"# {line}\n" for line in lines)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The model that a key's section follows: `LoraConfig | None` and `tuple[TeacherConfig, ...]` hold one."""
    for part in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None
