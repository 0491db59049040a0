"""YAML without its traps: what a user wrote is what is read, or an error with its line.

Against YAML 1.1, as PyYAML reads it: `1e-5` is a number; only true and false are booleans (`no`, `off` and `on` stay
text); dates, base-60 and octal numbers stay text; a key that stands twice is an error; aliases cannot explode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from compact_distill.errors import ConfigError

MAX_NODES = 100_000

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A parsed file: its top-level mapping, the line of each key and item, and problems with their lines."""

    data: dict[str, Any]
    lines: dict[Path, int]
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
        lines: dict[Path, int] = {}
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
    """Read the value of a `key=value` override by the same rules. Raises ConfigError."""
    return parse(f"value: {text}\n").data["value"]


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


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Iterator[tuple[int | None, str]]:
    """Note the line of every key and item; yield a problem for each key that is no text or stands twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            yield from _walk(item, (*path, index), lines)
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
