"""Figures of the weighing: whom the student trusted, what moved the weights, whether the scores know right from wrong.

Each function gives a figure, or None where its data is missing.
"""

from __future__ import annotations

import math

import numpy as np

from compact_distill.report.charts import Line, Mark, Ridge, heat_chart, interval_chart, line_chart, ridge_chart
from compact_distill.report.drawing import Figure, Key, Table, series
from compact_distill.report.read import RunData
from compact_distill.report.text import MINUS, listed, number, percent, share_text, whole_percent
from compact_distill.report.trace import Floats, Trace, Trend, mean_sem, weight_trend

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
    charts = [
        line_chart("Mean weight", epochs, lines, x_label="epoch", reference=even, x_ticks=x_ticks(epochs)),
        line_chart("Share of wins", epochs, win_lines, x_label="epoch", show=whole_percent, x_ticks=x_ticks(epochs)),
    ]
    wins = {(epoch, k): mean for epoch, k, mean, *_ in win_rows}
    table = [(epoch, trace.teachers[k], mean, sem, wins[epoch, k], n) for epoch, k, mean, sem, n in rows]
    return Figure(
        "weights",
        "Weight of each teacher over training",
        "Look for lines that cross or part: a teacher whose weight grows as the student improves is a curriculum. "
        "Flat lines mean that the student trusted the same teachers from start to end. A win is the largest weight "
        "of a problem. Bands are 95 % intervals over problems; teachers that took part in a problem only.",
        charts,
        Table(("epoch", "teacher", "weight", "sem", "wins", "n"), table),
        legend=teacher_keys(trace),
        finding=weight_moves(trace),
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
    )


def lengths_PK(run: RunData, trace: Trace) -> Floats:
    """Tokens of each problem's rationales; NaN where nobody knows."""
    found = [[run.rationale(p, t) for t in trace.teachers] for p in trace.ids]
    return np.array([[float(r.tokens) if r and r.tokens else math.nan for r in row] for row in found])


def curriculum(run: RunData) -> Figure | None:
    """Whether the weight moves, over training, towards harder or longer rationales."""
    trace = run.trace
    if trace is None:
        return None
    properties = {"length": lengths_PK(run, trace)}
    if "difficulty" in trace.scores:
        properties = {"difficulty": trace.scores["difficulty"][trace.first], **properties}
    trends = {name: trend for name, values in properties.items() if (trend := weight_trend(trace, values))}
    if not trends:
        return None
    charts, table = [], []
    for name, trend in trends.items():
        epochs, found, low, high = (list(column) for column in zip(*trend.points, strict=True))
        title = "Weight against length" if name == "length" else "Weight against difficulty at first reading"
        lines, level = [Line(name, found, 0, low, high)], (0.0, "weight does not follow it")
        ticks = x_ticks(epochs)
        charts.append(line_chart(title, epochs, lines, x_label="epoch", reference=level, labels=False, x_ticks=ticks))
        table += [(epoch, name, *numbers) for epoch, *numbers in trend.points]
    return Figure(
        "curriculum",
        "Does a curriculum show?",
        "Above the line harder (or longer) rationales of a problem weigh more than its easier (shorter) ones, below "
        "it less. A line that rises from left to right is a curriculum: easy ones first, harder ones later. Rank "
        "correlation within problems; difficulty is that of the first reading, so that it cannot move with the "
        "student. Bands are 95 % intervals of a bootstrap over problems.",
        charts,
        Table(("epoch", "property", "correlation", "low", "high"), table),
        finding=" ".join(_trend_sentence(name, trend) for name, trend in trends.items()),
    )


def _trend_sentence(name: str, trend: Trend) -> str:
    change, low, high = trend.change
    more, less = ("longer", "shorter") if name == "length" else ("harder", "easier")
    if not math.isfinite(change):
        return f"Too few readings to see a trend with {name}."
    span = f"({change:+.2f}; 95 %: {low:+.2f} to {high:+.2f})".replace("-", MINUS)
    if low <= 0 <= high:
        return f"No trend with {name} shows {span}."
    return f"The weight moved towards {more if change > 0 else less} rationales {span}."


def scores_over_training(run: RunData) -> Figure | None:
    """Mean of each score and teacher over training."""
    trace = run.trace
    if trace is None:
        return None
    epochs = [epoch for epoch, _ in trace.bins]
    charts, table = [], []
    for name, values_NK in trace.scores.items():
        lines, rows = curves(trace, values_NK)
        charts.append(line_chart(score_title(name), epochs, lines, x_label="epoch", x_ticks=x_ticks(epochs)))
        table += [(epoch, trace.teachers[k], name, mean, sem, n) for epoch, k, mean, sem, n in rows]
    return Figure(
        "scores_over_training",
        "What moved the weights: each score over training",
        "Difficulty should fall for every teacher as the student learns; a teacher whose difficulty falls faster than "
        "the others' gains weight. Adaptability shows whose reasoning still raises the belief in the gold answer, "
        "consensus which paths the others' final states attend to most (attention, not agreement of the answers).",
        charts,
        Table(("epoch", "teacher", "score", "mean", "sem", "n"), table),
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


def weight_moves(trace: Trace) -> str:
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


_BINS = 24
RIGHT, WRONG = "correct", "wrong"
_LEGEND = [Key("right", "right", 0), Key("wrong", "wrong", 2)]


def verdicts_PK(run: RunData, trace: Trace) -> np.ndarray:
    """Verdict of each problem's rationales, as text; empty where nobody knows."""
    found = [[run.rationale(p, t) for t in trace.teachers] for p in trace.ids]
    return np.array([[(r and r.verdict) or "" for r in row] for row in found], dtype=object)


def has_verdicts(run: RunData) -> bool:
    """Whether right and wrong rationales can be told apart."""
    return any(r.verdict in (RIGHT, WRONG) for p in run.problems.values() for r in p.rationales.values())


def distributions(run: RunData) -> Figure | None:
    """Each score per teacher: right above the line, wrong below."""
    trace = run.trace
    if trace is None or not has_verdicts(run):
        return None
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
            groups = [last[(verdict[:, k] == v) & ~np.isnan(last[:, k]), k] for v in (RIGHT, WRONG)]
            counts = [np.histogram(np.clip(g, edges[0], edges[-1]), edges)[0] for g in groups]
            medians = [float(np.median(g)) if len(g) else math.nan for g in groups]
            for v, count, median in zip((RIGHT, WRONG), counts, medians, strict=True):
                table += [
                    (name, trace.teachers[k], v, float(edges[b]), float(edges[b + 1]), int(count[b]), median)
                    for b in range(_BINS)
                    if count.sum()
                ]
            shares = [(c / max(c.sum(), 1)).tolist() for c in counts]
            tip = f"{trace.teachers[k]}: median {number(medians[0])} right, {number(medians[1])} wrong"
            ridges.append(Ridge(trace.teachers[k], shares[0], shares[1], medians[0], medians[1], tip))
        charts.append(ridge_chart(score_title(name), edges.tolist(), ridges, x_label=name))
    if not charts:
        return None
    return Figure(
        "score_distributions",
        "Scores of right and wrong rationales",
        "Look at how far the two hills of a row are shifted against each other: a score that knows right from wrong "
        "puts right rationales (above the line) to one side of wrong ones (below). Ticks are medians. Each "
        "rationale's last reading; each hill has the same area; the outermost 1 % is in the first and last bin.",
        charts,
        Table(("score", "teacher", "verdict", "from", "to", "count", "median"), table),
        legend=_LEGEND,
    )


def separation(run: RunData) -> Figure | None:
    """How often, within one problem, a right rationale beats a wrong one: by each score and by weight."""
    trace = run.trace
    if trace is None or not has_verdicts(run):
        return None
    verdict = verdicts_PK(run, trace)
    right, wrong = verdict == RIGHT, verdict == WRONG
    table = []
    for name, values_NK in [("weight", trace.weights_NK), *trace.scores.items()]:
        sign = -1.0 if name == "difficulty" else 1.0
        for reading, chosen in (("first", trace.first), ("last", trace.last)):
            chance, pairs = pair_order(sign * values_NK[chosen], right, wrong)
            table.append((name, reading, chance, pairs))
    if not any(pairs for *_, pairs in table):
        return None
    look = {"first": ("before", 0), "last": ("after", 2)}
    rows = []
    for name in dict.fromkeys(row[0] for row in table):
        marks = [Mark(r, c, css=look[r][0], shape=look[r][1]) for n, r, c, _ in table if n == name]
        rows.append((f"{name}, lower is better" if name == "difficulty" else name, marks))
    last = next(c for n, r, c, _ in table if (n, r) == ("weight", "last"))
    sheet = interval_chart(
        "Right beats wrong",
        rows,
        x_label="share of pairs within one problem",
        show=whole_percent,
        reference=0.5,
        x_range=(min(0.3, *(c for *_, c, _ in table)) - 0.02, max(0.7, *(c for *_, c, _ in table)) + 0.02),
    )
    return Figure(
        "separation",
        "Do the scores know right from wrong?",
        "Each point is the chance that a right rationale beats a wrong one of the same problem. At the line (50 %) "
        "the score knows nothing; right of it the student listens to right rationales, left of it to wrong ones.",
        [sheet],
        Table(("score", "reading", "chance", "pairs"), table),
        legend=[Key("first reading", "before", 0), Key("last reading", "after", 2)],
        finding=f"In the last readings a right rationale weighs more than a wrong one of the same problem in "
        f"{percent(last, 0)} of the pairs; chance would be 50 %.",
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


def weight_by_verdict(run: RunData) -> Figure | None:
    """Mean weight of each teacher's right and wrong rationales."""
    trace = run.trace
    if trace is None or not has_verdicts(run):
        return None
    verdict, last = verdicts_PK(run, trace), trace.weights_NK[trace.last]
    rows, table = [], []
    for k in trace.active:
        marks = []
        for v, name, shape in ((RIGHT, "right", 0), (WRONG, "wrong", 2)):
            mean, sem, n = mean_sem(last[verdict[:, k] == v, k])
            if n:
                marks.append(Mark(name, mean, mean - Z * sem, mean + Z * sem, name, shape))
                table.append((trace.teachers[k], v, mean, sem, n))
        rows.append((trace.teachers[k], marks))
    return Figure(
        "weight_by_verdict",
        "Does being right pay?",
        "Look for teachers whose blue point lies right of the orange one: there the student trusts a teacher more "
        "when it is right. Equal points mean that it trusts the teacher, whatever it says. Bars are 95 % intervals.",
        [interval_chart("Mean weight, last reading", rows, x_label="weight")],
        Table(("teacher", "verdict", "weight", "sem", "n"), table),
        legend=_LEGEND,
    )


def correlations(run: RunData) -> Figure | None:
    """Rank correlation of the scores and the weight over rationales."""
    trace = run.trace
    if trace is None or not trace.scores:
        return None
    columns = {name: values[trace.last].ravel() for name, values in trace.scores.items()}
    columns["weight"] = trace.weights_NK[trace.last].ravel()
    names = list(columns)
    cells = [[spearman(columns[a], columns[b]) for b in names] for a in names]
    return Figure(
        "correlations",
        "Do the scores say the same?",
        "Values near 0 mean that scores add something to each other; near 1 or −1 that one of them would do. The "
        "last row shows which score decides the weight. Spearman's rank correlation over the last readings.",
        [
            heat_chart(
                "Rank correlation", names, cells, show=lambda v: number(round(v, 2)), level=lambda v: round(v * 4)
            )
        ],
        Table(
            ("a", "b", "correlation"), [(a, b, cells[i][j]) for i, a in enumerate(names) for j, b in enumerate(names)]
        ),
    )


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation over the places where both are known; NaN where one does not vary."""
    both = ~(np.isnan(a) | np.isnan(b))
    x, y = _ranks(a[both]), _ranks(b[both])
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Ranks; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
