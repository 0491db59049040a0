"""Words, numbers, tables, and sheets of SVG with two axes; no plotting library is small enough for every report.

Colours come from classes only (charts.css), so the same drawing serves light, dark and print. They are Okabe and
Ito's, which colour-blind readers can tell apart; yellow is too pale for white paper, so black (white in the dark) and
grey stand in for it. Every series also has a marker of its own. All text passes through ElementTree, which escapes it.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

# ---- words and numbers as pages and terminals show them

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


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of shares in percentage points, with its sign."""
    if difference is None or not math.isfinite(difference):
        return DASH
    return f"{100 * difference:+.{digits}f}".replace("-", MINUS)


# Without decimals, for axes.
whole_percent, whole_points = functools.partial(percent, digits=0), functools.partial(points, digits=0)

UNITS = {"nats_per_token": "nats a token", "bits_per_byte": "bits a byte"}  # of measures that are better where smaller


def measured(value: float | None, metric: str) -> str:
    """A task's result in its unit: a percentage, or nats a token, or bits a byte."""
    return f"{number(value, 4)} {UNITS[metric]}" if metric in UNITS else percent(value)


def moved(difference: float | None, metric: str) -> str:
    """A change of a task's result with its sign: percentage points, or the measure's own unit."""
    if metric not in UNITS or difference is None or not math.isfinite(difference):
        return points(difference)
    return f"{'+' if difference > 0 else ''}{number(difference, 2)}"


def plural(count: int, noun: str) -> str:
    """`1 problem`, `2,000 problems`."""
    return f"{count:,} {noun if count == 1 else noun + 's'}"


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


# ---- sheets

Show = Callable[[float], str]
Spans = Sequence[tuple[float, float]]
NARROW, WIDE = 360, 500  # of a sheet, in pixels: a third and a half of a desktop page
CHARACTER = 6.1  # mean width of a character of 11 px text
SERIES = 8  # colours of series; then they repeat, and lines become dashed

_COLOURS = {  # name: light, dark
    "bg": ("#fbfbf9", "#121418"),
    "panel": ("#ffffff", "#191c22"),
    "ink": ("#1b1d21", "#e9e9e6"),
    "muted": ("#5f646d", "#a0a6b0"),
    "rule": ("#e4e4df", "#2d323b"),
    "accent": ("#0072b2", "#62b5ea"),
    "s0": ("#0072b2", "#3d9bd9"),
    "s1": ("#d55e00", "#f2793a"),
    "s2": ("#009e73", "#1fb98f"),
    "s3": ("#b95c91", "#e08fbd"),
    "s4": ("#e69f00", "#efb22e"),
    "s5": ("#56b4e9", "#9bd7ff"),
    "s6": ("#1b1d21", "#f2f2ef"),
    "s7": ("#a3aaa6", "#878d98"),
    "right": ("#0072b2", "#56b4e9"),
    "wrong": ("#d55e00", "#f0894d"),
    "before": ("#7b8089", "#9aa0aa"),
    "after": ("#0072b2", "#56b4e9"),
    "up": ("0, 114, 178", "86, 180, 233"),
    "down": ("213, 94, 0", "240, 137, 77"),
}
LIGHT = {name: light for name, (light, _) in _COLOURS.items()}
DARK = {name: dark for name, (_, dark) in _COLOURS.items()}


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values from `low` to `high`."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def padded(values: Sequence[float], *, zero: bool = False, margin: float = 0.06) -> tuple[float, float]:
    """A range that holds all finite values with some air; (0, 1) where there are none."""
    finite = [v for v in values if math.isfinite(v)] + ([0.0] if zero else [])
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    air = (high - low) * margin or abs(high) * 0.1 or 0.5
    return (low if zero and low >= 0 else low - air), high + air


def svg_element(**attributes: str) -> ET.Element:
    """An empty drawing."""
    return ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **attributes})


class Sheet:
    """One panel: a title, a plot area with linear axes, marks.

    Args:
        title: stands on top of the drawing, and is what a screen reader says.
        width, height, left, right: of the drawing and the margins beside the plot area, in pixels.
    """

    def __init__(self, title: str, *, width: int = NARROW, height: int = 230, left: int = 44, right: int = 14) -> None:
        self.title = title
        self.width, self.height = width, height
        self.x0, self.x1 = left, width - right
        self.y0, self.y1 = height - 40, 34
        self.x_range = self.y_range = (0.0, 1.0)
        look = {"class": "panel" if width == NARROW else "panel wide", "role": "img", "aria-label": short(title, 300)}
        self.root = svg_element(viewBox=f"0 0 {width} {height}", **look)
        self.text(2, 15, short(title, width // 7), "title")

    def xml(self) -> str:
        """The drawing as text."""
        return ET.tostring(self.root, encoding="unicode")

    # ---- places

    def x(self, value: float) -> float:
        """Pixels from the left edge to a value of the x axis."""
        return self._place(value, self.x_range, self.x0, self.x1)

    def y(self, value: float) -> float:
        """Pixels from the top to a value of the y axis."""
        return self._place(value, self.y_range, self.y0, self.y1)

    @staticmethod
    def _place(value: float, scale: tuple[float, float], start: float, end: float) -> float:
        low, high = scale
        share = (value - low) / (high - low) if high > low else 0.5
        return round(start + min(max(share, -0.05), 1.05) * (end - start), 1)

    # ---- marks

    def mark(self, tag: str, css: str, tip: str = "", **places: object) -> ET.Element:
        """Add an element; underscores in names of attributes become hyphens."""
        texts = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in places.items()}
        values = {name.replace("_", "-"): text for name, text in texts.items()}
        element = ET.SubElement(self.root, tag, {"class": css} | values)
        if tip:
            element.set("data-tip", tip)
        return element

    def text(self, x: float, y: float, words: str, css: str = "", anchor: str = "start") -> ET.Element:
        """Add words at a place in pixels."""
        element = self.mark("text", css, x=x, y=y, **({} if anchor == "start" else {"text_anchor": anchor}))
        element.text = words
        return element

    def line(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """A line through data points; it breaks where one is NaN."""
        path, pen_down = [], False
        for x, y in points:
            if math.isfinite(x) and math.isfinite(y):
                path.append(f"{'L' if pen_down else 'M'}{self.x(x):g} {self.y(y):g}")
                pen_down = True
            else:
                pen_down = False
        if path:
            self.mark("path", f"line {css}", d="".join(path))

    def band(self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], css: str) -> None:
        """The area between two lines, where both are finite."""
        rows = [r for r in zip(xs, lows, highs, strict=True) if all(map(math.isfinite, r))]
        if len(rows) > 1:
            there = [f"{self.x(x):g} {self.y(high):g}" for x, _, high in rows]
            back = [f"{self.x(x):g} {self.y(low):g}" for x, low, _ in reversed(rows)]
            self.mark("path", f"band {css}", d=f"M{'L'.join(there + back)}Z")

    def marker(self, x: float, y: float, shape: int, css: str, tip: str = "", size: float = 4) -> None:
        """A filled mark at a place in pixels; `shape` counts circle, square, triangle, diamond and so on."""
        if shape % SERIES == 0:
            self.mark("circle", f"dot {css}", tip, cx=x, cy=y, r=size)
            return
        outline = _SHAPES[shape % SERIES]
        corners = "L".join(f"{x + size * dx:.1f} {y + size * dy:.1f}" for dx, dy in outline)
        self.mark("path", f"dot {css}", tip, d=f"M{corners}Z")

    # ---- axes

    def x_axis(self, label: str, *, show: Show = number, at: Sequence[float] = (), grid: Spans = ()) -> None:
        """Tick labels and a name below the plot area, and grid lines through spans of y; `at` sets the ticks."""
        at = at or ticks(*self.x_range)
        for value in at:
            self.upright(value, "grid", grid)
        self.mark("line", "axis", x1=self.x0, x2=self.x1, y1=self.y0, y2=self.y0)
        for value in at:
            self.text(self.x(value), self.y0 + 15, show(value), "tick", "middle")
        self.text((self.x0 + self.x1) / 2, self.y0 + 31, label, "name", "middle")

    def y_axis(self, show: Show = number) -> None:
        """Grid lines and tick labels left of the plot area."""
        for value in ticks(*self.y_range):
            y = self.y(value)
            self.mark("line", "grid", x1=self.x0, x2=self.x1, y1=y, y2=y)
            self.text(self.x0 - 6, y + 4, show(value), "tick", "end")

    def upright(self, value: float, css: str, spans: Spans) -> None:
        """A vertical line at a value, through spans of y."""
        for y1, y2 in spans:
            self.mark("line", css, x1=self.x(value), x2=self.x(value), y1=y1, y2=y2)


# Corners around (0, 0), size 1: square, triangle, diamond, triangle down, plus, star, bar; 0 is the circle.
_TURNS = (1, 0), (0, 1), (-1, 0), (0, -1)
_SHAPES: dict[int, list[tuple[float, float]]] = {
    1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    2: [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
    3: [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    4: [(0, 1.2), (1.1, -0.9), (-1.1, -0.9)],
    5: [(x * a - y * b, x * b + y * a) for a, b in _TURNS for x, y in ((-0.4, -1.2), (0.4, -1.2), (0.4, -0.4))],
    6: [(math.sin(i * math.pi / 5) * r, -math.cos(i * math.pi / 5) * r) for i, r in enumerate([1.4, 0.6] * 5)],
    7: [(-1.3, -0.5), (1.3, -0.5), (1.3, 0.5), (-1.3, 0.5)],
}


def series(index: int) -> str:
    """Classes of the index-th series: its colour, and dashes where colours start to repeat."""
    return f"s{index % SERIES}" + (" dashed" if index >= SERIES else "")


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Labels' places moved apart, as little as possible, so that neighbours keep `gap`; in [low, high] if they fit."""
    from scipy.optimize import isotonic_regression

    if not places:
        return []
    # With i * gap taken off, labels that keep their distance are a rising sequence.
    order, steps = np.argsort(places, kind="stable"), np.arange(len(places)) * gap
    level = isotonic_regression(np.asarray(places)[order] - steps).x
    moved = np.empty(len(places))
    moved[order] = np.clip(level, low, max(high - steps[-1], low)) + steps
    return [float(place) for place in moved]


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a marker's shape and classes, and its meaning."""

    name: str
    css: str
    shape: int = 0


@dataclass(frozen=True)
class Table:
    """Named columns and rows of plain values; None and NaN are empty."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def csv(self) -> str:
        """The table as CSV; numbers with 15 significant digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[_cell(value) for value in row] for row in self.rows])
        return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.15g}" if math.isfinite(value) else ""
    return "" if value is None else value


Chart = Callable[[int], Sheet]  # a drawing of any width


def spaced(count: int, most: int) -> list[int]:
    """At most `most` indices of `count`, evenly spaced, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
