"""What the site makes from the code while it is built: reference pages, and pages that live outside docs/.

mkdocs calls `on_config` once and `on_page_markdown` for each page; a line `<!-- make: NAME -->` is replaced by what
NAME makes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]


def on_config(config: Any) -> Any:
    """Link to the repository, as soon as pyproject.toml has its address."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"].get("Repository")
    if address:
        config.repo_url = address
        config.repo_name = "/".join(address.rstrip("/").split("/")[-2:])
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill a page's marks, show why a block is not run, and let links that leave docs/ point at their text alone."""
    filled = re.sub(r"^<!-- make: (\w+) -->$", lambda mark: MAKERS[mark[1]](), markdown, flags=re.M)
    # The comments of the sources, which the tests read, would be invisible.
    filled = re.sub(r"^( *)<!-- not run: (.+) -->$", r"\1<small>Not run by a test: \2.</small>\n", filled, flags=re.M)
    return re.sub(r"\[([^\]]+)\]\(\.\./((?:\.\./)*)([\w./-]+)\)", _outside, filled)


def _outside(link: re.Match[str]) -> str:
    """A link to a file of the repository that is no page: its name stays."""
    return link[0] if (ROOT / "docs" / link[3]).exists() else f"{link[1]} (`{link[3]}`)"


def configuration() -> str:
    """Every key of the YAML with its type, default and meaning, from the models that read it."""
    from compact_distill.config.models import RunConfig

    return "\n".join(_model_rows(RunConfig, ""))


def _model_rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    yield from _rows_of(model, prefix)
    fields = model.model_fields.items()
    sections = [(name, inner) for name, field in fields for inner in _models_in(field.annotation)]
    for name, inner in sections:
        yield f"\n## `{prefix}{name}`\n\n{_cell(inspect.getdoc(inner) or '')}"
        yield from _model_rows(inner, f"{prefix}{name}.")


def _rows_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    yield "\n| key | type | default | meaning |\n| --- | --- | --- | --- |"
    for name, field in model.model_fields.items():
        yield f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {_cell(field.description or '')} |"


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def _type(field: FieldInfo) -> str:
    return _cell(_name(field.annotation))


def _name(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_name(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Annotated:
        return _name(typing.get_args(annotation)[0])
    if annotation is type(None):
        return "null"
    if typing.get_origin(annotation) in (tuple, list):
        return f"list of {_name(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is dict or annotation is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if value in ((), {}):
        return "none"
    return "`null`" if value is None else "`" + str(value).replace("|", "\\|") + "`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;")


def commands() -> str:
    """Each command's help as the terminal shows it."""
    import os

    os.environ["COLUMNS"] = "100"
    from compact_distill.cli import app

    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():
        context = command.make_context(name, [], parent=group.make_context("compact", [], resilient_parsing=True),
                                       resilient_parsing=True)  # fmt: skip
        parts.append(f"## compact {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts)


def python() -> str:
    """The public surface, object by object, for mkdocstrings."""
    import compact_distill

    lines = []
    for name in sorted(compact_distill.__all__):
        found = getattr(compact_distill, name)
        home = f"{found.__module__}.{found.__qualname__}"
        lines += [f"::: {home}", *_fields(found)]
    return "\n\n".join(lines)


def _fields(found: Any) -> Iterator[str]:
    """The fields of a settings class that say what they mean, as a table; nothing for other objects."""
    if isinstance(found, type) and issubclass(found, BaseModel):
        yield "\n".join(row.replace("| key |", "| field |") for row in _rows_of(found, ""))
    elif dataclasses.is_dataclass(found):
        own = [field for field in dataclasses.fields(found) if field.name in vars(found).get("__annotations__", {})]
        rows = [
            f"| `{f.name}` | {_plain_default(f)} | {_cell(f.metadata['help'])} |" for f in own if "help" in f.metadata
        ]
        if rows:
            yield "\n".join(["| field | default | meaning |", "| --- | --- | --- |", *rows])


def _plain_default(field: dataclasses.Field[Any]) -> str:
    return "its own" if field.default is dataclasses.MISSING else f"`{field.default}`"


def changelog() -> str:
    """CHANGELOG.md of the repository."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def contributing() -> str:
    """CONTRIBUTING.md of the repository."""
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


MAKERS: dict[str, Callable[[], str]] = {
    made.__name__: made for made in (configuration, commands, python, changelog, contributing)
}
