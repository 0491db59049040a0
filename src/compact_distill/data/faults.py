"""What is wrong with an input: every fault is counted, the first ones are told, and all files are told at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compact_distill.errors import DataError

_TOLD = 20


class Faults:
    """The faults of one input, in the order found."""

    def __init__(self, source: object) -> None:
        self.source = str(source)
        self.count = 0
        self._told: list[str] = []

    def add(self, where: str, message: str) -> None:
        """Note a fault; `where` is the line or row, or empty where the input as a whole is meant."""
        self.count += 1
        if self.count <= _TOLD:
            self._told.append(f"{self.source}, {where}: {message}" if where else f"{self.source}: {message}")

    def messages(self) -> list[str]:
        """The first twenty faults, and how many more there are."""
        more = self.count - len(self._told)
        return [*self._told, f"{self.source}: and {more} more like these"] if more else list(self._told)


def raise_if_any(inputs: Iterable[Faults]) -> None:
    """Raise one DataError with the faults of all inputs, unless there are none."""
    messages = [message for faults in inputs for message in faults.messages()]
    if messages:
        raise DataError(messages)


def short(value: Any) -> str:
    """A value as an error message shows it, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
