"""The main figures as text, for the end of a run in a terminal."""

from __future__ import annotations

from compact_distill.report.headline import headline, mean_weights
from compact_distill.report.read import RunData
from compact_distill.report.text import percent, points, share_text, short

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
    weights = mean_weights(run)
    if weights:
        width = max(len(short(name, _NAME)) for name, *_ in weights)
        lines.append("  teachers by mean weight, last reading")
        for name, weight, wins in weights:
            bar = "█" * round(weight * _BAR)
            lines.append(
                f"  {short(name, _NAME):<{width}}  {bar:<{_BAR}} {share_text(weight):>5}   wins {percent(wins, 0)}"
            )
        lines.append("")
    facts = [f"{name} {value}" for name, value, _ in head.facts if value != "–"]
    lines.append(f"  {' · '.join(facts)}")
    if run.missing:
        lines.append(f"  not shown: {'; '.join(run.missing)}")
    return "\n".join(lines)
