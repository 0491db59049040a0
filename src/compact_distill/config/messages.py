"""The base of every section of the YAML, and pydantic's errors in our words: key, rule, value, remedy."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from compact_distill.errors import nearest

Location = tuple[str | int, ...]

_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}
_TYPES = {
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must hold `key: value` lines",
    "model_type": "must hold `key: value` lines",
    "finite_number": "must be finite",
    "string_too_short": "must not be empty",
}


class Strict(BaseModel):
    """A section whose unknown keys are errors, whose values do not change, and whose numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def key_path(location: Location) -> str:
    """`("teachers", 0, "name")` as a user would say it: `teachers[0].name`."""
    path = ""
    for item in location:
        path += f"[{item}]" if isinstance(item, int) else f".{item}" if path else item
    return path


def show(value: Any) -> str:
    """A value as a message shows it: as YAML writes it, and shortened."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def messages(error: ValidationError, root: type[BaseModel]) -> Iterator[tuple[Location, str]]:
    """Location and message of everything that is wrong, in the file's order as far as pydantic keeps it."""
    for item in error.errors(include_url=False):
        location = item["loc"]
        parent, field = _find(root, location)
        kind = item["type"]
        name = key_path(location)
        if kind == "extra_forbidden":
            # Never show the value: an unknown key may hold a secret.
            yield location, f"{name} is not a known key{_suggestion(str(location[-1]), parent, root)}"
        elif kind == "missing":
            yield location, f"{name} is missing; {_example(location, field)}"
        elif kind == "value_error":
            rule = str(item["ctx"]["error"])
            yield location, f"{name} {rule}" if name else rule
        else:
            yield location, f"{name} {_rule(item)}, got {show(item['input'])}{_remedy(item, field)}"


def _rule(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind in _BOUNDS:
        sign, key = _BOUNDS[kind]
        return f"must be {sign} {context[key]:g}"
    if kind == "literal_error":
        return f"must be one of {context['expected']}"
    return _TYPES.get(kind, f"is wrong ({item['msg']})")


def _remedy(item: Any, field: FieldInfo | None) -> str:
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        close = nearest(item["input"], item["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", "))
        if close:
            return close
    if field is None:
        return ""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "remedy" in extra:
        return f"; {extra['remedy']}"
    if field.is_required():
        return ""
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel | dict | tuple):
        return "; remove the key to use the defaults"
    return f"; the default is {'null' if default is None else default}"


def _example(location: Location, field: FieldInfo | None) -> str:
    example = field.examples[0] if field and field.examples else "..."
    meaning = f" ({field.description})" if field and field.description else ""
    return f"write `{location[-1]}: {example}`{meaning}"


def _suggestion(key: str, parent: type[BaseModel] | None, root: type[BaseModel]) -> str:
    """Nearest key of the same section, else the section that this very key belongs to, else the keys there are."""
    if parent is None:
        return ""
    close = nearest(key, parent.model_fields)
    if close:
        return close
    sections = [
        f"`{name}:`"
        for name, field in root.model_fields.items()
        if (section := _model_in(field.annotation)) not in (None, parent) and key in section.model_fields
    ]
    if sections:
        return f"; it belongs under {' or '.join(sections)}"
    return f"; known keys are {', '.join(parent.model_fields)}"


def _find(root: type[BaseModel], location: Location) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """The model that holds the location's last key, and that key's field where there is one."""
    model: type[BaseModel] | None = root
    parent: type[BaseModel] | None = root
    field: FieldInfo | None = None
    for item in location:
        if isinstance(item, int):
            continue
        parent = model
        field = model.model_fields.get(item) if model else None
        model = _model_in(field.annotation) if field else None
    return parent, field


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation: `LoraConfig | None` and `tuple[TeacherConfig, ...]` hold one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
