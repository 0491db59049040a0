"""Keys come from the environment and go nowhere else: they are cut out of all that a server sends back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from urllib.parse import quote

from compact_distill.errors import ConfigError

_SECRET_LENGTH = 8
"""Shorter keys (`EMPTY`, `none`) are no secrets; cutting them out would mangle rationales."""
_ECHO = 12
"""This many characters of a key in a row give it away; servers like to echo a part of it."""
_BLOCK = _ECHO // 2


def read_key(variable: str | None) -> str | None:
    """Return the key that the environment variable holds; None where no variable is named.

    Raises:
        ConfigError: the variable is not set, or empty.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"environment variable {variable} must hold the key, but it is not set; "
            f"`export {variable}=...`, or remove api_key_env where the server needs no key"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"the key in {variable} must be plain ASCII without spaces; set it again, without quotes")
    return key


class Redactor:
    """Replaces keys, whole or in part, by the name of their variable."""

    def __init__(self, variables: Iterable[str | None]) -> None:
        self._keys: list[tuple[tuple[str, ...], str]] = []
        for variable in variables:
            key = os.environ.get(variable, "").strip() if variable else ""
            if len(key) >= _SECRET_LENGTH:
                self._keys.append((tuple({key, quote(key, safe="")}), f"[{variable}]"))

    def __call__(self, text: str) -> str:
        """Return the text without any key in it."""
        for forms, name in self._keys:
            # Every run of _ECHO characters holds one of these blocks whole, so most texts need no closer look.
            if any(form[i : i + _BLOCK] in text for form in forms for i in range(0, len(form) - _BLOCK + 1, _BLOCK)):
                text = _without_parts(text, forms, name)
        return text


def _without_parts(text: str, forms: tuple[str, ...], name: str) -> str:
    """Cut out every stretch of the text that is also a stretch of the key, from _ECHO characters on."""
    shortest = min(_ECHO, *map(len, forms))
    kept: list[str] = []
    at = 0
    while at < len(text):
        length = shortest
        while at + length <= len(text) and any(text[at : at + length] in form for form in forms):
            length += 1
        if length > shortest:
            kept.append(name)
            at += length - 1
        else:
            kept.append(text[at])
            at += 1
    return "".join(kept)
