"""Errors a user can act on: each message gives the value, the rule and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class CompactError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(CompactError):
    """Bad input, found before any work started.

    `problems` holds one message for each thing that is wrong, so that a user mends all of them in one go; `told` counts
    those that a command printed before.
    """

    told = 0

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(InputError):
    """A configuration value that breaks a rule."""


class DataError(InputError):
    """A problem or rationale file that cannot be read, or rows in it that break a rule."""


class StudentError(InputError):
    """A student model or tokenizer that cannot be used."""


class RunError(CompactError):
    """A run that started and cannot go on (too many bad rows, a damaged run folder, a lock held)."""


def shown(value: Any) -> str:
    """A value as an error message shows it, in at most 60 characters."""
    return shortened(repr(value))


def shortened(text: str) -> str:
    """The text in at most 60 characters."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest valid name, or an empty string where none is close."""
    import difflib

    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
