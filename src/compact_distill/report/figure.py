"""A figure: its drawings, its numbers, what to look for, and how to compute it again from the run folder."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compact_distill.report.svg import Sheet


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


@dataclass(frozen=True)
class Figure:
    """One figure of the page.

    Attributes:
        key: its name in addresses, file names and docs/report.md.
        title: what it shows.
        caption: what to look for.
        sheets: its drawings, side by side.
        table: every number in the drawings.
        recompute: a shell line that prints the same numbers, run inside the run folder.
        legend: entries that the drawings share.
        finding: what this run's numbers say, in a sentence; may be empty.
    """

    key: str
    title: str
    caption: str
    sheets: Sequence[Sheet]
    table: Table
    recompute: str = ""
    legend: Sequence[Key] = ()
    finding: str = ""


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.15g}" if math.isfinite(value) else ""
    return "" if value is None else value
