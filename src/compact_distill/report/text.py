"""Text and numbers as the report shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

# Control characters but tab and line feed (XML has no way to write them, a terminal would obey them), halves of
# surrogate pairs, and what turns the direction of all text behind it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
DASH = "\u2013"
MINUS = "\u2212"


def clean(text: Any) -> str:
    """Any value as text of the same length without control characters and halves of surrogate pairs."""
    return _CONTROL.sub("\ufffd", str(text).replace("\r\n", " \n").replace("\r", "\n"))


def short(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis where it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def number(value: float | None, digits: int = 3) -> str:
    """A number with about `digits` significant digits, thousands apart; a dash for None and NaN."""
    if value is None or not math.isfinite(value):
        return DASH
    if value and abs(value) < 10.0**-digits:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("-", MINUS)
    size = 0 if value == 0 else math.floor(math.log10(abs(value)))
    text = f"{value:,.{max(digits - 1 - size, 0)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text.replace("-", MINUS)


def share_text(value: float | None) -> str:
    """A weight or a share of 1, with two decimals."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.2f}".replace("-", MINUS)


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage."""
    return DASH if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f} %".replace("-", MINUS)


def whole_percent(share: float | None) -> str:
    """A share as a percentage without decimals, for axes."""
    return percent(share, 0)


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of shares in percentage points, with its sign."""
    if difference is None or not math.isfinite(difference):
        return DASH
    return f"{100 * difference:+.{digits}f}".replace("-", MINUS)


def whole_points(difference: float | None) -> str:
    """A difference in percentage points without decimals, for axes."""
    return points(difference, 0)


UNITS = {"nats_per_token": "nats a token", "bits_per_byte": "bits a byte"}  # of measures that are better where smaller


def measured(value: float | None, metric: str) -> str:
    """A task's result in its unit: a percentage, or nats a token, or bits a byte."""
    return f"{number(value, 4)} {UNITS[metric]}" if metric in UNITS else percent(value)


def moved(difference: float | None, metric: str) -> str:
    """A change of a task's result with its sign: percentage points, or the measure's own unit."""
    if metric not in UNITS or difference is None or not math.isfinite(difference):
        return points(difference)
    return f"{'+' if difference > 0 else ''}{number(difference, 2)}"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 problem`, `2,000 problems`."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def flat(value: Any, name: str, between: str) -> Iterator[tuple[str, Any]]:
    """Nested mappings as rows of a path and a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{name}{between}{clean(key)}" if name else clean(key), between)
    elif name:
        yield name, value


def plain(value: Any) -> str:
    """A setting as text."""
    return clean(", ".join(map(str, value)) if isinstance(value, list) else value)
