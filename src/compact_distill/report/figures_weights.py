"""Figures of the weighing: whom the student trusted, what moved the weights, if the scores know right from wrong."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from compact_distill.report.charts import Line, Mark, Ridge, heat_chart, interval_chart, line_chart, ridge_chart
from compact_distill.report.drawing import (
    MINUS,
    Chart,
    Key,
    Table,
    listed,
    number,
    percent,
    series,
    share_text,
    whole_percent,
)
from compact_distill.report.html import Drawn, figure
from compact_distill.report.read import RIGHT, WRONG, RunData
from compact_distill.report.trace import Floats, Trace, Trend, mean_sem, spearman, weight_trend
from compact_distill.statistics import wilson

Z = 1.96  # standard errors to a side of a 95 % interval
_BINS = 24
_JUDGED = [Key("right", "right", 0), Key("wrong", "wrong", 2)]
_TITLES = {
    "consensus": "Consensus (sum of shares)",
    "adaptability": "Adaptability, nats",
    "difficulty": "Difficulty, nats per token",
}
_Draw = Callable[[RunData, Trace], Drawn | None]
Interval = Callable[[float, float, int], tuple[float, float]]  # mean, standard error, number -> 95 % interval


def _figure(section: str, title: str, judged: bool = False) -> Callable[[_Draw], None]:
    """A figure of runs that have a trace; `judged`: of those whose rationales are known to be right or wrong."""

    def register(draw: _Draw) -> None:
        @figure(section, title)
        @functools.wraps(draw)
        def draw_run(run: RunData) -> Drawn | None:
            if run.trace is None or (judged and not any(r.verdict in (RIGHT, WRONG) for r in run.rationales())):
                return None
            return draw(run, run.trace)

    return register


def _of_rationales(run: RunData, trace: Trace, name: str, kind: type) -> Any:
    """A field of each problem's rationales, [P, K]; None (NaN among numbers) where nobody knows."""
    return np.array([[getattr(run.rationale(p, t), name, None) for t in trace.teachers] for p in trace.ids], dtype=kind)


def lengths_PK(run: RunData, trace: Trace) -> Floats:
    """Tokens of each problem's rationales; NaN where nobody knows."""
    return np.asarray(_of_rationales(run, trace, "tokens", float))


def verdicts_PK(run: RunData, trace: Trace) -> np.ndarray:
    """Verdict of each problem's rationales, as text; None where nobody knows."""
    return np.asarray(_of_rationales(run, trace, "verdict", object))


# ---- over training


def _over_training(trace: Trace, title: str, lines: list[Line], **more: Any) -> Chart:
    return line_chart(title, [epoch for epoch, _ in trace.bins], lines, x_label="epoch", **more)


def _line(name: str, stats: list[tuple[float, float, int]], index: int, interval: Interval) -> Line:
    """Means with their 95 % intervals."""
    low, high = zip(*(interval(*own) for own in stats), strict=True)
    return Line(name, [mean for mean, *_ in stats], index, list(low), list(high))


def _of_mean(mean: float, sem: float, _: int) -> tuple[float, float]:
    return mean - Z * sem, mean + Z * sem


def _of_weight(mean: float, sem: float, _: int) -> tuple[float, float]:
    """A mean of what lies between 0 and 1 does so, too."""
    return max(mean - Z * sem, 0.0), min(mean + Z * sem, 1.0)


def _of_share(share: float, _: float, count: int) -> tuple[float, float]:
    if not count:
        return math.nan, math.nan
    found = wilson(share, count)
    return found.low, found.high


def _curves(
    trace: Trace, values_NK: Floats, interval: Interval
) -> tuple[list[Line], list[tuple[float, str, float, float, int]]]:
    """A line per teacher of the means over readings, and (epoch, teacher, mean, sem, n) of each point."""
    lines, rows = [], []
    for k in trace.active:
        stats = [mean_sem(values_NK[n, k]) for _, n in trace.bins]
        lines.append(_line(trace.teachers[k], stats, k, interval))
        rows += [(epoch, trace.teachers[k], *own) for (epoch, _), own in zip(trace.bins, stats, strict=True) if own[2]]
    return lines, rows


def _teacher_keys(trace: Trace) -> list[Key]:
    return [Key(trace.teachers[k], series(k), k) for k in trace.active]


@_figure("teachers", "Weight of each teacher over training")
def weights(run: RunData, trace: Trace) -> Drawn:
    """Look for lines that cross or part: a teacher whose weight grows as the student improves is a curriculum. Flat
    lines mean that the student trusted the same teachers from start to end. A win is the largest weight of a problem.
    Bands are 95 % intervals over problems; teachers that took part in a problem only.
    """
    lines, rows = _curves(trace, trace.weights_NK, _of_weight)
    wins, win_rows = _curves(trace, trace.wins_NK, _of_share)
    charts = [
        _over_training(trace, "Mean weight", lines, reference=(1 / max(len(trace.teachers), 1), "even share")),
        _over_training(trace, "Share of wins", wins, show=whole_percent),
    ]
    table = [(*row[:4], win[2], row[4]) for row, win in zip(rows, win_rows, strict=True)]
    columns = ("epoch", "teacher", "weight", "sem", "wins", "n")
    return Drawn(charts, Table(columns, table), _teacher_keys(trace), weight_moves(trace))


@_figure("teachers", "How decided the weights are")
def entropy(run: RunData, trace: Trace) -> Drawn:
    """Near the dotted line all teachers count alike; near zero one rationale takes everything. A falling line means
    that the student becomes choosier while it learns.
    """
    stats = [mean_sem(trace.entropy_N[n]) for _, n in trace.bins]
    level = math.log(max(float(trace.present_N.max()), 1.0)), f"all equal: ln {trace.present_N.max()}"
    line = _line("entropy", stats, 0, _of_mean)
    chart = _over_training(trace, "Entropy of the weights, nats", [line], reference=level, labels=False, zero=True)
    rows = [(epoch, *own) for (epoch, _), own in zip(trace.bins, stats, strict=True)]
    return Drawn([chart], Table(("epoch", "entropy", "sem", "n"), rows))


@_figure("teachers", "Does a curriculum show?")
def curriculum(run: RunData, trace: Trace) -> Drawn | None:
    """Above the line harder (or longer) rationales of a problem weigh more than its easier (shorter) ones, below it
    less. A line that rises from left to right is a curriculum: easy ones first, harder ones later. Rank correlation
    within problems; difficulty is that of the first reading, so that it cannot move with the student. Bands are 95 %
    intervals of a bootstrap over problems.
    """
    properties = {"length": lengths_PK(run, trace)}
    if "difficulty" in trace.scores:
        properties = {"difficulty": trace.scores["difficulty"][trace.first], **properties}
    charts, table, findings = [], [], []
    for name, values in properties.items():
        if (trend := weight_trend(trace, values)) is not None:
            epochs, found, low, high = (list(column) for column in zip(*trend.points, strict=True))
            title = "Weight against length" if name == "length" else "Weight against difficulty at first reading"
            line, level = Line(name, found, 0, low, high), (0.0, "weight does not follow it")
            charts.append(line_chart(title, epochs, [line], x_label="epoch", reference=level, labels=False))
            table += [(epoch, name, *numbers) for epoch, *numbers in trend.points]
            findings.append(_trend_sentence(name, trend))
    columns = ("epoch", "property", "correlation", "low", "high")
    return Drawn(charts, Table(columns, table), finding=" ".join(findings)) if charts else None


def _trend_sentence(name: str, trend: Trend) -> str:
    change, low, high = trend.change
    more, less = ("longer", "shorter") if name == "length" else ("harder", "easier")
    if not math.isfinite(change):
        return f"Too few readings to see a trend with {name}."
    span = f"({change:+.2f}; 95 %: {low:+.2f} to {high:+.2f})".replace("-", MINUS)
    if low <= 0 <= high:
        return f"No trend with {name} shows {span}."
    return f"The weight moved towards {more if change > 0 else less} rationales {span}."


@_figure("teachers", "What moved the weights: each score over training")
def scores_over_training(run: RunData, trace: Trace) -> Drawn:
    """Difficulty should fall for every teacher as the student learns; a teacher whose difficulty falls faster than the
    others' gains weight. Adaptability shows whose reasoning still raises the belief in the gold answer, consensus which
    paths the others' final states attend to most (attention, not agreement of the answers).
    """
    charts, table = [], []
    for name, values_NK in trace.scores.items():
        lines, rows = _curves(trace, values_NK, _of_mean)
        charts.append(_over_training(trace, _TITLES.get(name, name), lines))
        table += [(epoch, teacher, name, *own) for epoch, teacher, *own in rows]
    return Drawn(charts, Table(("epoch", "teacher", "score", "mean", "sem", "n"), table), _teacher_keys(trace))


def weight_moves(trace: Trace) -> str:
    """Whether weights moved between the first and the last reading of the same problems, as a sentence."""
    both = trace.first != trace.last
    if not both.any():
        return "Every problem was read once, so no change of weights can be seen."
    changes_PK = (trace.weights_NK[trace.last] - trace.weights_NK[trace.first])[both]
    known = [(name, *own) for name, c in zip(trace.teachers, changes_PK.T, strict=True) if (own := mean_sem(c))[2] > 1]
    moved = sorted(((mean, name) for name, mean, sem, _ in known if abs(mean) > max(Z * sem, 0.01)), reverse=True)
    if not moved:
        return (
            f"The weights stayed: between first and last reading no teacher's mean weight moved by more than "
            f"{share_text(max((abs(mean) for _, mean, *_ in known), default=0.0))} or beyond chance."
        )
    parts = [f"{name} {'gained' if mean > 0 else 'lost'} {share_text(abs(mean))}" for mean, name in moved]
    return f"The weights moved: between first and last reading {listed(parts)} of mean weight."


# ---- right and wrong rationales


@_figure("scores", "Scores of right and wrong rationales", judged=True)
def score_distributions(run: RunData, trace: Trace) -> Drawn | None:
    """Look at how far the two hills of a row are shifted against each other: a score that knows right from wrong puts
    right rationales (above the line) to one side of wrong ones (below). Ticks are medians. Each rationale's last
    reading; each hill has the same area; the outermost 1 % is in the first and last bin.
    """
    verdict = verdicts_PK(run, trace)
    charts, table = [], []
    for name, values_NK in trace.scores.items():
        last = values_NK[trace.last]
        finite = last[~np.isnan(last)]
        if not len(finite):
            continue
        low, high = np.percentile(finite, [1, 99])
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        ridges = []
        for k in trace.active:
            teacher, hills, medians = trace.teachers[k], [], []
            for v in (RIGHT, WRONG):
                own = last[(verdict[:, k] == v) & ~np.isnan(last[:, k]), k]
                count = np.histogram(np.clip(own, edges[0], edges[-1]), edges)[0]
                hills.append((count / max(count.sum(), 1)).tolist())
                medians.append(float(np.median(own)) if len(own) else math.nan)
                bins = zip(edges[:-1].tolist(), edges[1:].tolist(), count.tolist(), strict=True)
                table += [(name, teacher, v, *own_bin, medians[-1]) for own_bin in bins if count.sum()]
            tip = f"{teacher}: median {number(medians[0])} right, {number(medians[1])} wrong"
            ridges.append(Ridge(teacher, hills[0], hills[1], medians[0], medians[1], tip))
        charts.append(ridge_chart(_TITLES.get(name, name), edges.tolist(), ridges, x_label=name))
    columns = ("score", "teacher", "verdict", "from", "to", "count", "median")
    return Drawn(charts, Table(columns, table), _JUDGED) if charts else None


@_figure("scores", "Do the scores know right from wrong?", judged=True)
def separation(run: RunData, trace: Trace) -> Drawn | None:
    """Each point is the chance that a right rationale beats a wrong one of the same problem. At the line (50 %) the
    score knows nothing; right of it the student listens to right rationales, left of it to wrong ones.
    """
    verdict = verdicts_PK(run, trace)
    looks = {"first": (trace.first, "before", 0), "last": (trace.last, "after", 2)}
    rows, table = [], []
    for name, values_NK in [("weight", trace.weights_NK), *trace.scores.items()]:
        sign = -1.0 if name in run.less_is_better else 1.0
        marks = []
        for reading, (chosen, css, shape) in looks.items():
            chance, pairs = pair_order(sign * values_NK[chosen], verdict == RIGHT, verdict == WRONG)
            table.append((name, reading, chance, pairs))
            marks.append(Mark(reading, chance, css=css, shape=shape))
        rows.append((f"{name}, lower is better" if sign < 0 else name, marks))
    if not any(pairs for *_, pairs in table):
        return None
    chances = [chance for *_, chance, _ in table]
    ends = min(0.3, *chances) - 0.02, max(0.7, *chances) + 0.02
    label = "share of pairs within one problem"
    return Drawn(
        [interval_chart("Right beats wrong", rows, x_label=label, show=whole_percent, reference=0.5, x_range=ends)],
        Table(("score", "reading", "chance", "pairs"), table),
        [Key(f"{reading} reading", css, shape) for reading, (_, css, shape) in looks.items()],
        f"In the last readings a right rationale weighs more than a wrong one of the same problem in "
        f"{percent(table[1][2], 0)} of the pairs; chance would be 50 %.",
    )


def pair_sums(values_PK: Floats, right_PK: np.ndarray, wrong_PK: np.ndarray) -> tuple[Floats, Floats]:
    """For each problem, how many of its (right, wrong) pairs have the larger value on the right side, ties half; of
    how many."""
    difference = values_PK[:, :, None] - values_PK[:, None, :]
    pairs = right_PK[:, :, None] & wrong_PK[:, None, :] & ~np.isnan(difference)
    wins = np.where(pairs, (difference > 0) + 0.5 * (difference == 0), 0.0)
    return wins.sum((1, 2)), pairs.sum((1, 2)).astype(float)


def pair_order(values_PK: Floats, right_PK: np.ndarray, wrong_PK: np.ndarray) -> tuple[float, int]:
    """Share of (right, wrong) pairs of one problem whose right one is larger, ties half; and the number of pairs."""
    wins_P, pairs_P = pair_sums(values_PK, right_PK, wrong_PK)
    count = int(pairs_P.sum())
    return (float(wins_P.sum() / count) if count else math.nan), count


@_figure("scores", "Does being right pay?", judged=True)
def weight_by_verdict(run: RunData, trace: Trace) -> Drawn:
    """Look for teachers whose blue point lies right of the orange one: there the student trusts a teacher more when it
    is right. Equal points mean that it trusts the teacher, whatever it says. Bars are 95 % intervals.
    """
    verdict, last = verdicts_PK(run, trace), trace.weights_NK[trace.last]
    rows, table = [], []
    for k in trace.active:
        marks = []
        for v, key in zip((RIGHT, WRONG), _JUDGED, strict=True):
            mean, sem, n = mean_sem(last[verdict[:, k] == v, k])
            if n:
                marks.append(Mark(key.name, mean, mean - Z * sem, mean + Z * sem, key.css, key.shape))
                table.append((trace.teachers[k], v, mean, sem, n))
        rows.append((trace.teachers[k], marks))
    chart = interval_chart("Mean weight, last reading", rows, x_label="weight")
    return Drawn([chart], Table(("teacher", "verdict", "weight", "sem", "n"), table), _JUDGED)


@_figure("scores", "Do the scores say the same?")
def correlations(run: RunData, trace: Trace) -> Drawn | None:
    """Values near 0 mean that scores add something to each other; near 1 or −1 that one of them would do. The last row
    shows which score decides the weight. Spearman's rank correlation over the last readings.
    """
    if not trace.scores:
        return None
    columns = {name: v[trace.last].ravel() for name, v in (*trace.scores.items(), ("weight", trace.weights_NK))}
    cells = [[spearman(a, b) for b in columns.values()] for a in columns.values()]
    chart = heat_chart("Rank correlation", list(columns), cells, show=lambda v: number(round(v, 2)))
    table = [
        (a, b, value) for a, row in zip(columns, cells, strict=True) for b, value in zip(columns, row, strict=True)
    ]
    return Drawn([chart], Table(("a", "b", "correlation"), table))
