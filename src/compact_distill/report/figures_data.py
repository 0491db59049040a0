"""Figures of what the student was given: what became of the rationales, their lengths, who was right, who agreed.

Each function gives a figure, or None where its data is missing.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from compact_distill.report.charts import Ridge, heat_chart, ridge_chart, stack_chart
from compact_distill.report.drawing import Figure, Key, Table
from compact_distill.report.read import RunData, UsedRationale
from compact_distill.report.text import number, plural, whole_percent

_BINS = 24
# Parts of a teacher's bar, in order, with their classes: those that train, then those that do not.
_PARTS = {
    "right": "right",
    "wrong": "wrong",
    "not checked": "s7",
    "unparsed": "gap1",
    "no answer": "gap1",
    "over length": "gap2",
    "missing": "gap3",
    "rejected": "gap4",
}


def part_of(rationale: UsedRationale) -> str:
    """What became of a rationale, in the words of the figure."""
    if rationale.status != "ok":
        return rationale.status.replace("_", " ")
    return {"correct": "right", "wrong": "wrong", None: "not checked"}.get(rationale.verdict, "unparsed")


def status(run: RunData) -> Figure | None:
    """What became of each teacher's rationales."""
    order = run.teachers
    if not run.problems:
        return None
    counts: Counter[tuple[str, str]] = Counter(
        (name, part_of(r)) for p in run.problems.values() for name, r in p.rationales.items()
    )
    classes = _PARTS | {part: "gap4" for _, part in counts if part not in _PARTS}
    rows = [(name, [(part, counts[name, part]) for part in classes]) for name in order]
    used = sum(count for (_, part), count in counts.items() if part in ("right", "wrong", "not checked"))
    total = sum(counts.values())
    return Figure(
        "data_status",
        "What became of the rationales",
        "Blue and orange parts trained the student; everything grey was left out, never cut or guessed. A teacher "
        "with much grey needs a longer max_length (over length) or a clearer end of its answers (unparsed).",
        [stack_chart("Rationales", rows, classes, x_label="rationales")],
        Table(
            ("teacher", "part", "count"),
            [(n, part, counts[n, part]) for n in order for part in classes if counts[n, part]],
        ),
        legend=[Key(part, css) for part, css in classes.items() if any(counts[n, part] for n in order)],
        finding=f"{plural(used, 'rationale')} of {total:,} took part in training.",
    )


def lengths(run: RunData) -> Figure | None:
    """Tokens of each teacher's completions."""
    order = run.teachers
    tokens = {
        name: [r.tokens for p in run.problems.values() if (r := p.rationales.get(name)) and r.tokens] for name in order
    }
    longest = max((t for values in tokens.values() for t in values), default=0)
    if not longest:
        return None
    edges = np.linspace(0, longest, _BINS + 1)
    ridges, table = [], []
    for name in order:
        counts = np.histogram(tokens[name], edges)[0]
        median = float(np.median(tokens[name])) if tokens[name] else math.nan
        table += [(name, float(edges[b]), float(edges[b + 1]), int(counts[b]), median) for b in range(_BINS)]
        shares = (counts / max(counts.sum(), 1)).tolist()
        tip = f"{name}: median {number(median)} tokens"
        ridges.append(Ridge(f"{name}: median {number(median)}", shares, [], median, math.nan, tip))
    return Figure(
        "data_lengths",
        "How long they are",
        "Look for teachers that write much longer than the others: difficulty is a mean over tokens, so length alone "
        "does not weigh, but long rationales cost most of the time. Completions in tokens; ticks are medians.",
        [ridge_chart("Tokens of a completion", edges.tolist(), ridges, x_label="tokens", above="s0")],
        Table(("teacher", "from", "to", "count", "median"), table),
    )


def agreement(run: RunData) -> Figure | None:
    """How often two teachers give the same answer."""
    order = run.teachers
    if len(order) < 2 or not run.problems:
        return None
    table, cells = [], []
    for a in order:
        cells.append([math.nan] * len(order))
        for j, b in enumerate(order):
            pairs = [(p.rationales.get(a), p.rationales.get(b)) for p in run.problems.values()]
            same = [_agree(x, y) for x, y in pairs if x and y and x.answer is not None and y.answer is not None]
            share = sum(same) / len(same) if same else math.nan
            cells[-1][j] = share
            if a != b:
                table.append((a, b, share, len(same)))
    return Figure(
        "agreement",
        "Who agrees with whom",
        "Teachers that always agree teach the same thing twice; one that agrees with nobody is either the best or "
        "the worst, and the weights should tell which. Two answers agree if both are right or their texts are equal.",
        [heat_chart("Same answer", order, cells, show=whole_percent, level=lambda v: round(4 * max(v, 0.0)))],
        Table(("a", "b", "share", "n"), table),
    )


def _agree(a: UsedRationale, b: UsedRationale) -> bool:
    both_right = a.verdict == b.verdict == "correct"
    return both_right or (a.answer or "").strip() == (b.answer or "").strip()


def right_per_problem(run: RunData) -> Figure | None:
    """For how many problems 0, 1, ... teachers were right."""
    order = run.teachers
    if not any(r.verdict for p in run.problems.values() for r in p.rationales.values()):
        return None
    counts = Counter(sum(r.verdict == "correct" for r in p.rationales.values()) for p in run.problems.values())
    rows = [(f"{i} right: {counts[i]:,}", [("problems", counts[i])]) for i in range(len(order) + 1)]
    return Figure(
        "right_per_problem",
        "How many teachers were right",
        "Problems at 0 teach only errors unless wrong rationales are rejected; problems in the middle are where "
        "weighing can help most, because right and wrong stand side by side.",
        [stack_chart("Problems by number of right teachers", rows, {"problems": "s0"}, x_label="problems")],
        Table(("right", "problems"), [(i, counts[i]) for i in range(len(order) + 1)]),
    )
