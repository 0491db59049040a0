"""Jinja templates of tasks: what makes a prompt or a field of a row; sandboxed, and a missing name is an error."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)  # prompts are plain text


def check_template(template: str) -> str:
    """Return the template. Raises ValueError where it cannot be compiled."""
    try:
        _compiled(template)
    except TemplateError as error:
        raise ValueError(f"must be a Jinja template, got {template!r:.80}: {error}; mend it")
    return template


def render(template: str, fields: Mapping[str, Any]) -> str:
    """Fill in a template. Raises ValueError where it names what the fields do not hold, or fails otherwise."""
    try:
        return _compiled(template).render(fields)
    except Exception as error:  # a template may do anything to a value
        raise ValueError(f"template {template!r:.80}: {error}") from error


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)
