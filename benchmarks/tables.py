"""Rows of results, and the Markdown tables made of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

MIB = 2**20
# (ours, whom against, what, goal) in the main section, on two CPU cores with all weights of the small shape.
GOALS = (
    ("lens", "trl", "time", 0.50),
    ("lens", "trl", "memory", 0.60),
    ("lens", "naive", "time", 0.45),
    ("lens", "naive", "memory", 0.50),
    ("probe", "lens", "time", 1.10),
    ("probe", "lens", "memory", 1.15),
)
TWO_PHASE_GOAL = 1.25


@dataclass
class Row:
    """One entry's results: seconds a problem in each round (wall and processor), peak bytes, FLOP floor in seconds.

    `rationale` is the mean length of a completion in tokens; `tokens` counts a problem's tokens by kind.
    """

    label: str
    contender: str
    teachers: int
    rationale: int
    tokens: dict[str, float]
    floor: float
    seconds: list[float]
    cpu_seconds: list[float]
    peak: int
    loss: float
    failure: str | None
    six_n: float = math.nan  # seconds that 6 operations a parameter and token would take, whatever is trained

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_seconds) if self.cpu_seconds else math.nan

    @property
    def size(self) -> tuple[int, int]:
        """What it trained on: rows of one size are compared with each other."""
        return self.teachers, self.rationale


@dataclass
class Section:
    """Rows that were raced together, and the matmul rate meanwhile (operations a second; 0: several races)."""

    name: str
    title: str
    rows: list[Row]
    rate: float = field(default=0.0)

    def row(self, label: str) -> Row | None:
        """The row of that label, if it did not fail."""
        return next((row for row in self.rows if row.label == label and row.seconds), None)

    def fastest(self, contenders: Sequence[str]) -> str | None:
        """Label of the fastest row among some contenders."""
        rows = [row for row in self.rows if row.contender in contenders and row.seconds]
        return min(rows, key=lambda row: row.median).label if rows else None


def ratio(one: Row, other: Row, what: str) -> float:
    """Median over rounds of the ratio of times (what: "time" or "cpu"), or the ratio of peaks ("memory")."""
    if what == "memory":
        return one.peak / other.peak if other.peak else math.nan
    mine, theirs = (one.seconds, other.seconds) if what == "time" else (one.cpu_seconds, other.cpu_seconds)
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def markdown(sections: Sequence[Section]) -> str:
    """The tables of some sections."""
    return "\n\n".join(_section(section) for section in sections)


def _section(section: Section) -> str:
    lines = [f"### {section.title}", ""]
    lines += ["| | ms a problem | CPU ms | peak MiB | FLOP floor, ms | MFU (6 N) | loss |"]
    lines += ["| --- | --: | --: | --: | --: | --: | --: |"]
    for row in section.rows:
        if row.failure is not None:
            lines.append(f"| {row.label} | failed: {row.failure.splitlines()[0]} | | | | | |")
        else:
            numbers = [row.median * 1e3, row.cpu_median * 1e3, row.peak / MIB, row.floor * 1e3]
            lines.append(
                f"| {row.label} | "
                + " | ".join(f"{n:,.0f}" for n in numbers)
                + f" | {row.six_n / row.median:.2f} | {row.loss:.4f} |"
            )
    ratios = {"main": _main_ratios, "two-phase": _two_phase_ratios}.get(section.name, _growth_ratios)(section)
    if ratios:
        lines += ["", *ratios]
    if section.rate:
        lines += ["", f"Matmul rate: {section.rate / 1e9:,.0f} GFLOP/s."]
    return "\n".join(lines)


def _main_ratios(section: Section) -> list[str]:
    lines = ["| ratio | time | CPU time | peak memory | goals of the small shape |", "| --- | --: | --: | --: | --: |"]
    best = section.fastest(["trl-single", "trl-padded", "trl-packed", "trl-padded-16"])
    for one, other in (("lens", "trl"), ("lens", "naive"), ("probe", "lens")):
        mine = section.row(one)
        theirs = section.row((best or "") if other == "trl" else other)
        if mine is None or theirs is None:
            continue
        goals = [f"{goal:.2f}" for who, whom, _, goal in GOALS if (who, whom) == (one, other)]
        name = f"TRL's best ({theirs.label})" if other == "trl" else other
        numbers = [f"{ratio(mine, theirs, what):.2f}" for what in ("time", "cpu", "memory")]
        lines.append(f"| {one} / {name} | " + " | ".join(numbers) + f" | {', '.join(goals)} |")
    return lines if len(lines) > 2 else []


def _growth_ratios(section: Section) -> list[str]:
    lines = ["| size | against | time | CPU time | peak memory |", "| --- | --- | --: | --: | --: |"]
    for row in section.rows:
        mine = next((r for r in section.rows if r.contender == "lens" and r.size == row.size), None)
        if row.contender == "lens" or not row.seconds or mine is None or not mine.seconds:
            continue
        numbers = [f"{ratio(mine, row, what):.2f}" for what in ("time", "cpu", "memory")]
        size = f"K = {row.teachers}, {row.rationale} tokens"
        lines.append(f"| {size} | {row.contender} | " + " | ".join(numbers) + " |")
    return lines if len(lines) > 2 else []


def _two_phase_ratios(section: Section) -> list[str]:
    mine = next((row for row in section.rows if row.label.startswith("two-phase") and row.seconds), None)
    lines = []
    for row in section.rows:
        if mine is not None and row.teachers == 1 and row.seconds:
            lines.append(f"- two-phase / {row.label}: peak memory {ratio(mine, row, 'memory'):.2f}")
    return [*lines, f"\nGoal: {TWO_PHASE_GOAL:.2f} of one rationale of plain fine-tuning."] if lines else []
