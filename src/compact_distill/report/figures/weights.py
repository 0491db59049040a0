"""Whom the student learned from: weights, wins and entropy over training."""

from __future__ import annotations

import math

from compact_distill.report.charts import Line, line_chart
from compact_distill.report.figure import Figure, Key, Table
from compact_distill.report.figures.oneliners import BINS, LONG, SCORES, python
from compact_distill.report.read import RunData
from compact_distill.report.svg import series
from compact_distill.report.text import listed, percent, share_text
from compact_distill.report.trace import Floats, Trace, mean_sem

Z = 1.96  # standard errors to a side of a 95 % interval


def teacher_keys(trace: Trace) -> list[Key]:
    """The legend of the teachers."""
    return [Key(trace.teachers[k], series(k), k) for k in trace.active]


def curves(trace: Trace, values_NK: Floats) -> tuple[list[Line], list[tuple[float, int, float, float, int]]]:
    """A line per teacher of the means over readings, and (epoch, teacher, mean, sem, n) of each point."""
    lines, rows = [], []
    for k in trace.active:
        stats = [(epoch, *mean_sem(values_NK[n, k])) for epoch, n in trace.bins]
        rows += [(epoch, k, mean, sem, n) for epoch, mean, sem, n in stats if n]
        low, high = ([mean + sign * Z * sem for _, mean, sem, _ in stats] for sign in (-1, 1))
        lines.append(Line(trace.teachers[k], [mean for _, mean, *_ in stats], k, low, high))
    return lines, rows


def weights(run: RunData) -> Figure | None:
    """Mean weight and share of wins of each teacher over training."""
    trace = run.trace
    if trace is None:
        return None
    epochs = [epoch for epoch, _ in trace.bins]
    even = (1 / max(len(trace.teachers), 1), "even share")
    lines, rows = curves(trace, trace.weights_NK)
    win_lines, win_rows = curves(trace, trace.wins_NK)
    sheets = [
        line_chart("Mean weight", epochs, lines, x_label="epoch", reference=even, x_ticks=x_ticks(epochs)),
        line_chart(
            "Share of wins", epochs, win_lines, x_label="epoch", show=lambda v: percent(v, 0), x_ticks=x_ticks(epochs)
        ),
    ]
    wins = {(epoch, k): mean for epoch, k, mean, *_ in win_rows}
    table = [(epoch, trace.teachers[k], mean, sem, wins[epoch, k], n) for epoch, k, mean, sem, n in rows]
    return Figure(
        "weights",
        "Weight of each teacher over training",
        "Look for lines that cross or part: a teacher whose weight grows as the student improves is a curriculum. "
        "Flat lines mean that the student trusted the same teachers from start to end. A win is the largest weight "
        "of a problem. Bands are 95 % intervals over problems; teachers that took part in a problem only.",
        sheets,
        Table(("epoch", "teacher", "weight", "sem", "wins", "n"), table),
        python(
            SCORES + BINS + "d['best']=d.weights.map(max); " + LONG + "d['wins']=d.weights==d.best; "
            "print(d.groupby(['epoch','teachers']).agg(weight=('weights','mean'),sem=('weights','sem'),"
            "wins=('wins','mean'),n=('wins','size')).rename_axis(['epoch','teacher']).to_csv())"
        ),
        legend=teacher_keys(trace),
        finding=curriculum(trace),
    )


def entropy(run: RunData) -> Figure | None:
    """Entropy of the weights over training."""
    trace = run.trace
    if trace is None:
        return None
    stats = [(epoch, *mean_sem(trace.entropy_N[n])) for epoch, n in trace.bins]
    epochs = [epoch for epoch, *_ in stats]
    low, high = ([mean + sign * Z * sem for _, mean, sem, _ in stats] for sign in (-1, 1))
    most = math.log(max(float(trace.present_N.max()), 1.0))
    line = Line("entropy", [mean for _, mean, *_ in stats], 0, low, high, css="s0")
    sheet = line_chart(
        "Entropy of the weights, nats",
        epochs,
        [line],
        x_label="epoch",
        reference=(most, f"all equal: ln {trace.present_N.max()}"),
        labels=False,
        zero=True,
        x_ticks=x_ticks(epochs),
    )
    return Figure(
        "entropy",
        "How decided the weights are",
        "Near the dotted line all teachers count alike; near zero one rationale takes everything. A falling line "
        "means that the student becomes choosier while it learns.",
        [sheet],
        Table(("epoch", "entropy", "sem", "n"), stats),
        python(
            SCORES + BINS + "d['entropy']=d.weights.map(lambda a:-sum(x*np.log(x) for x in a if x)); "
            "print(d.groupby('epoch').entropy.agg(entropy='mean',sem='sem',n='size').to_csv())",
            "import numpy as np, pandas as pd; ",
        ),
    )


def scores_over_training(run: RunData) -> Figure | None:
    """Mean of each score and teacher over training."""
    trace = run.trace
    if trace is None:
        return None
    epochs = [epoch for epoch, _ in trace.bins]
    sheets, table = [], []
    for name, values_NK in trace.scores.items():
        lines, rows = curves(trace, values_NK)
        sheets.append(line_chart(score_title(name), epochs, lines, x_label="epoch", x_ticks=x_ticks(epochs)))
        table += [(epoch, trace.teachers[k], name, mean, sem, n) for epoch, k, mean, sem, n in rows]
    return Figure(
        "scores_over_training",
        "What moved the weights: each score over training",
        "Difficulty should fall for every teacher as the student learns; a teacher whose difficulty falls faster than "
        "the others' gains weight. Adaptability shows whose reasoning still raises the belief in the gold answer, "
        "consensus which paths the others' final states attend to most (attention, not agreement of the answers).",
        sheets,
        Table(("epoch", "teacher", "score", "mean", "sem", "n"), table),
        python(
            SCORES + BINS + LONG + "d=d.melt(['epoch','teachers'],s[1:],'score'); "
            "print(d.groupby(['epoch','teachers','score']).value.agg(mean='mean',sem='sem',n='size')"
            ".rename_axis(['epoch','teacher','score']).to_csv())"
        ),
        legend=teacher_keys(trace),
    )


_TITLES = {
    "consensus": "Consensus (sum of shares)",
    "adaptability": "Adaptability, nats",
    "difficulty": "Difficulty, nats per token",
}


def score_title(name: str) -> str:
    """A score's name with its unit."""
    return _TITLES.get(name, name)


def x_ticks(epochs: list[float]) -> list[float]:
    """Whole epochs, where there are few enough of them to print each."""
    return epochs if len(epochs) <= 6 and all(e == int(e) for e in epochs) else []


def curriculum(trace: Trace) -> str:
    """Whether weights moved between the first and the last reading of the same problems, as a sentence."""
    both = trace.first != trace.last
    if not both.any():
        return "Every problem was read once, so no change of weights can be seen."
    moved = []
    largest = 0.0
    for k, name in enumerate(trace.teachers):
        mean, sem, n = mean_sem((trace.weights_NK[trace.last] - trace.weights_NK[trace.first])[both, k])
        if n > 1:
            largest = max(largest, abs(mean))
            if abs(mean) > Z * sem and abs(mean) >= 0.01:
                moved.append((mean, name))
    if not moved:
        return (
            f"The weights stayed: between first and last reading no teacher's mean weight moved by more than "
            f"{share_text(largest)} or beyond chance."
        )
    parts = [
        f"{name} {'gained' if mean > 0 else 'lost'} {share_text(abs(mean))}"
        for mean, name in sorted(moved, reverse=True)
    ]
    return f"The weights moved: between first and last reading {listed(parts)} of mean weight."
