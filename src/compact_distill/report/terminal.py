"""The main figures as text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compact_distill.report.compare import compared, differing_settings, overview, run_names, verdict
from compact_distill.report.figure import Table
from compact_distill.report.headline import headline, weight_shares
from compact_distill.report.read import RunData
from compact_distill.report.text import DASH, number, percent, points, short
from compact_distill.runs.progress import text_table

_BAR = 24  # characters of a full bar
_NAME = 28


def summary(run: RunData) -> str:
    """Verdict, accuracy before and after, weights of the teachers, and what is missing, as plain text."""
    head = headline(run)
    lines = [head.verdict, ""]
    if run.changes:
        width = max(len(short(c.task, _NAME)) for c in run.changes)
        for c in sorted(run.changes, key=lambda c: (c.role != "learned", c.task)):
            lines.append(
                f"  {short(c.task, _NAME):<{width}}  {percent(c.before):>7} → {percent(c.after):>7}   "
                f"{points(c.difference):>6} points (95 %: {points(c.low)} to {points(c.high)})"
            )
        lines.append("")
    weights = weight_shares(run)
    if weights:
        width = max(len(short(name, _NAME)) for name, *_ in weights)
        lines.append("  teachers: share of the weight, and of the problems where theirs is the largest")
        for name, weight, wins in weights:
            bar = "█" * round(weight * _BAR)
            label = f"  {short(name, _NAME):<{width}}  {bar:<{_BAR}}"
            lines.append(f"{label} {percent(weight, 0):>5}  {percent(wins, 0):>5}")
        lines.append("")
    facts = [f"{name} {value}" for name, value, _ in head.facts if value != DASH]
    lines.append(f"  {' · '.join(facts)}")
    if run.missing:
        lines.append(f"  not shown: {'; '.join(run.missing)}")
    return "\n".join(lines)


def comparison(runs: Sequence[RunData], paired: Sequence[Mapping[str, Any]] = ()) -> str:
    """Which run did best, a row for each, paired changes, and the settings that differ, as plain text."""
    parts = [verdict(runs, paired), _aligned(overview(runs))]
    changes = compared(run_names(runs), paired)
    if changes:
        rows = [
            (name, c.task, points(c.difference), points(c.low), points(c.high), c.rows, c.mcnemar_p)
            for name, c in changes
        ]
        columns = (f"against {run_names(runs)[0]}", "task", "points", "low", "high", "rows", "McNemar p")
        parts.append(_aligned(Table(columns, rows)))
    settings = differing_settings(runs)
    if settings.rows:
        parts.append(_aligned(settings))
    return "\n\n".join(parts)


def _aligned(table: Table) -> str:
    """A table as columns of text, numbers to the right."""
    rows = [[short(str(column), _NAME) for column in table.columns]]
    rows += [[_cell(value) for value in row] for row in table.rows]
    columns = range(len(table.columns))
    left = [c for c in columns if not any(isinstance(row[c], int | float) for row in table.rows)]
    return "\n".join(text_table(rows, left))


def _cell(value: object) -> str:
    if value is None:
        return DASH
    return number(float(value), 4) if isinstance(value, int | float) else short(str(value), _NAME)
