"""The commented YAML that `compact init` writes, made from the models so that it cannot go stale."""

from __future__ import annotations

import re
import typing
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from compact_distill.config.models import RunConfig

_WIDTH = 120
_HEAD = """\
# A run of compact-distill. Check it:   compact validate THIS_FILE --dry-run
#                           Start it:   compact run THIS_FILE
# Relative paths start at the current folder. A line that starts with # is off; what it shows is an example.

"""


def template() -> str:
    """A valid configuration that names every key, its default, its choices and its meaning."""
    text = _HEAD
    for name, field in RunConfig.model_fields.items():
        section = _section(field)
        default = field.get_default(call_default_factory=True)
        if section is None and not isinstance(default, dict):
            # Rationales are the one source that the template switches on: a run needs one.
            text += _line(name, field, indent="", on=name == "rationales")
            continue
        if section is None:
            body = "".join(f"  {key}: {_value(value)}\n" for key, value in default.items())
        else:
            body = "".join(_line(key, inner, indent="  ") for key, inner in section.model_fields.items())
        if isinstance(default, tuple):
            body = _as_list_item(body)
        block = f"{name}:\n{body}"
        on = bool(default) and any(not line.startswith("  #") for line in body.splitlines())
        text += f"\n{_comment(field)}\n{block if on else _switched_off(block)}\n"
    return text.replace("\n\n\n", "\n\n").rstrip("\n") + "\n"


def _line(name: str, field: FieldInfo, indent: str, on: bool = False) -> str:
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
