"""YAML without its traps, and errors in our words: what a user wrote is what is read, or key, rule, value, remedy.

Against YAML 1.1, as PyYAML reads it: `1e-5` is a number; only true and false are booleans (`no`, `off` and `on` stay
text); dates, base-60 and octal numbers stay text; a key that stands twice is an error; aliases cannot explode.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from compact_distill.errors import ConfigError, nearest

MAX_NODES = 100_000

Location = tuple[str | int, ...]
"""Where a key or item stands: `("teachers", 0, "name")`."""
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
    "too_short": "must not be empty",
}


@dataclass(frozen=True)
class Document:
    """A parsed file: its top-level mapping, the line of each key and item, and problems with their lines."""

    data: dict[str, Any]
    lines: dict[Location, int]
    problems: list[tuple[int | None, str]]


class _Loader(yaml.SafeLoader):
    """SafeLoader with the types of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    yaml_constructors = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (
            None,
            *(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")),
        )
    }


_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9_]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
)
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def parse(text: str) -> Document:
    """Read one YAML document whose top level is a mapping.

    Problems that leave the rest readable (duplicate keys) are collected in the document.

    Raises:
        ConfigError: broken syntax (with its line), another top level, an unknown tag, aliases that explode.
    """
    try:
        return _document(_Loader(text))
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_message(error)) from error
    except yaml.YAMLError as error:  # a control character; it has no mark
        raise ConfigError(f"the file must be plain text: {str(error).splitlines()[0]}; remove that sign") from error
    except RecursionError:
        raise ConfigError("the file must not be nested this deep; indent less") from None


def _document(loader: _Loader) -> Document:
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError("the file is empty; `compact init` writes one to start from")
        if not isinstance(root, yaml.MappingNode):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
            raise ConfigError(f"line 1: the file must hold `key: value` lines, got {kind}; see `compact init`")
        _refuse_explosion(root)
        lines: dict[Location, int] = {}
        problems = list(_walk(root, (), lines))
        try:
            return Document(loader.construct_document(root), lines, problems)
        except (ValueError, KeyError) as error:  # a tag that its value contradicts: !!int abc
            raise ConfigError(
                f"the file holds a value that its !!tag does not fit ({error}); remove the tag"
            ) from error
    finally:
        loader.dispose()


def parse_value(text: str) -> Any:
    """Read the value of a `key=value` override by the same rules. Raises ConfigError; it names no place in a file."""
    try:
        document = parse(f"value: {text}\n")
    except ConfigError as error:
        raise ConfigError([re.sub(r"^line \d+(, column \d+)?: ", "", problem) for problem in error.problems]) from error
    if document.problems:
        raise ConfigError([re.sub(r" \(first in line \d+\)", "", problem) for _, problem in document.problems])
    if len(document.data) > 1:
        raise ConfigError(f"must be one value, got {show(text)}; set each key on its own")
    return document.data["value"]


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    context = f" ({error.context})" if error.context else ""
    return f"{where}must be valid YAML: {error.problem}{context}; check quotes, colons and indentation"


def _refuse_explosion(root: yaml.Node) -> None:
    """Count nodes as if every alias were written out; shared nodes are visited once."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in sizes:
            return sizes[key]
        sizes[key] = MAX_NODES + 1  # an alias inside its own anchor never ends
        if isinstance(node, yaml.MappingNode):
            sizes[key] = 1 + sum(size(k) + size(v) for k, v in node.value)
        elif isinstance(node, yaml.SequenceNode):
            sizes[key] = 1 + sum(size(item) for item in node.value)
        else:
            sizes[key] = 1
        return sizes[key]

    if size(root) > MAX_NODES:
        raise ConfigError(f"the file must have at most {MAX_NODES} values with aliases written out; use fewer aliases")


def _walk(node: yaml.Node, path: Location, lines: dict[Location, int]) -> Iterator[tuple[int | None, str]]:
    """Note the line of every key and item; yield a problem for each key that is no text or stands twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            yield from _walk(item, (*path, index), lines)
    elif isinstance(node, yaml.ScalarNode) and "\0" in node.value:
        yield node.start_mark.line + 1, f"{key_path(path)} must not hold a NUL character; remove it"
        node.value = node.value.replace("\0", "")  # so that the rest can be checked
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        kept = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                kept.append((key_node, value_node))
                continue
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:str":
                shown = repr(key) if isinstance(key, str) else "a list or mapping"
                yield line, f"key must be text, got {shown}; put it in quotes or remove it"
                continue
            if key in seen:
                yield line, f"key {key!r} stands twice (first in line {seen[key]}); keep one of them"
                continue
            seen[key] = line
            lines[(*path, key)] = line
            kept.append((key_node, value_node))
            yield from _walk(value_node, (*path, key), lines)
        node.value = kept


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


def messages(
    error: ValidationError, root: type[BaseModel], others: Mapping[str, str] | None = None
) -> Iterator[tuple[Location, str]]:
    """Location and message of everything that is wrong, in the file's order as far as pydantic keeps it.

    `others` are names of keys in other tools, each with what to say of it; a teacher's keys are its own.
    """
    found: dict[Location, tuple[Any, list[str]]] = {}
    for item in error.errors(include_url=False):
        location = item["loc"]
        if _is_union(_find(root, location[:-1])[1]):
            location = location[:-1]  # one error for each type that was tried, and named last
        if item["type"] != "too_short" or not item["input"]:  # else its items are wrong, which is told
            found.setdefault(location, (item, []))[1].append(_rule(item))
    for location, (item, rules) in found.items():
        parent, field = _find(root, location)
        kind = item["type"]
        name = key_path(location)
        if kind == "extra_forbidden":
            # Never show the value: an unknown key may hold a secret.
            key = str(location[-1])
            meant = None if not others or location[0] == "teachers" else others.get(key)
            yield location, f"{name} is not a known key{f'; {meant}' if meant else _suggestion(key, parent, root)}"
        elif kind == "missing":
            yield location, f"{name} is missing; {_example(location, field)}"
        elif kind == "value_error":
            rule = str(item["ctx"]["error"])
            yield location, f"{name} {rule}" if name else rule
        else:
            rule = " or ".join([rules[0], *(rule.removeprefix("must ") for rule in rules[1:])])
            yield location, f"{name} {rule}, got {show(item['input'])}{_remedy(item, field)}"


def _is_union(field: FieldInfo | None) -> bool:
    """Whether a field holds one of several types, such as `str | dict[str, Any]`; one that may be null is none."""
    annotation = None if field is None else field.annotation
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return False
    return sum(kind is not type(None) for kind in typing.get_args(annotation)) > 1


def _rule(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind in _BOUNDS:
        sign, key = _BOUNDS[kind]
        return f"must be {sign} {context[key] if isinstance(context[key], int) else f'{context[key]:g}'}"
    if kind == "literal_error":
        return f"must be one of {context['expected']}"
    return _TYPES.get(kind, f"is wrong ({item['msg']})")


def _remedy(item: Any, field: FieldInfo | None) -> str:
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        close = nearest(item["input"], item["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", "))
        if close:
            return close
    if item["type"] == "tuple_type" and isinstance(item["input"], str):
        return f"; write [{item['input']}]"
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
