"""What the scores say about right and wrong rationales, and about each other."""

from __future__ import annotations

import math

import numpy as np

from compact_distill.report.charts import Mark, Ridge, heat_chart, interval_chart, ridge_chart
from compact_distill.report.figure import Figure, Key, Table
from compact_distill.report.figures.oneliners import DATA, JOIN, LONG, SCORES, python
from compact_distill.report.figures.weights import Z, score_title
from compact_distill.report.read import RunData
from compact_distill.report.text import number, percent
from compact_distill.report.trace import Floats, Trace, mean_sem

_BINS = 24
RIGHT, WRONG = "correct", "wrong"
_LEGEND = [Key("right", "right", 0), Key("wrong", "wrong", 2)]


def verdicts_PK(run: RunData, trace: Trace) -> np.ndarray:
    """Verdict of each problem's rationales, as text; empty where nobody knows."""
    return np.array([[run.verdict(p, t) or "" for t in trace.teachers] for p in trace.ids], dtype=object)


def has_verdicts(run: RunData) -> bool:
    """Whether right and wrong rationales can be told apart."""
    return any(r.verdict in (RIGHT, WRONG) for p in run.problems.values() for r in p.rationales.values())


def distributions(run: RunData) -> Figure | None:
    """Each score per teacher: right above the line, wrong below."""
    trace = run.trace
    if trace is None or not has_verdicts(run):
        return None
    verdict = verdicts_PK(run, trace)
    sheets, table = [], []
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
        sheets.append(ridge_chart(score_title(name), edges.tolist(), ridges, x_label=name))
    if not sheets:
        return None
    return Figure(
        "score_distributions",
        "Scores of right and wrong rationales",
        "Look at how far the two hills of a row are shifted against each other: a score that knows right from wrong "
        "puts right rationales (above the line) to one side of wrong ones (below). Ticks are medians. Each "
        "rationale's last reading; each hill has the same area; the outermost 1 % is in the first and last bin.",
        sheets,
        Table(("score", "teacher", "verdict", "from", "to", "count", "median"), table),
        python(
            SCORES
            + "d=d.drop_duplicates('id',keep='last'); "
            + LONG
            + DATA
            + "e={c:np.linspace(*np.percentile(d[c],[1,99]),25) for c in s[1:]}; "
            + JOIN
            + "print('score,teacher,verdict,from,count,median'); [print(c,*g,a,n,x[c].median(),sep=',') "
            "for c in s[1:] for g,x in d.groupby(['teachers','verdict']) if g[1] in ('correct','wrong') "
            "for a,n in zip(e[c],np.histogram(x[c].clip(e[c][0],e[c][-1]),e[c])[0])]",
            "import json, numpy as np, pandas as pd; ",
        ),
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
        show=lambda v: percent(v, 0),
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
        python(
            SCORES + LONG + DATA + JOIN + "d['difficulty']*=-1; d=d[d.verdict.isin(['correct','wrong'])]; "
            "print('score,reading,chance,pairs'); [print('weight' if c=='weights' else c,k,"
            "((p[c+'_x']>p[c+'_y'])+.5*(p[c+'_x']==p[c+'_y'])).mean(),len(p),sep=',') for k in ('first','last') "
            "for q in [d.drop_duplicates(['id','teachers'],keep=k)] "
            "for p in [q[q.verdict=='correct'].merge(q[q.verdict=='wrong'],on='id')] for c in s]"
        ),
        legend=[Key("first reading", "before", 0), Key("last reading", "after", 2)],
        finding=f"In the last readings a right rationale weighs more than a wrong one of the same problem in "
        f"{percent(last, 0)} of the pairs; chance would be 50 %.",
    )


def pair_order(values_PK: Floats, right_PK: np.ndarray, wrong_PK: np.ndarray) -> tuple[float, int]:
    """Share of (right, wrong) pairs of one problem whose right one is larger, ties half; and the number of pairs."""
    difference = values_PK[:, :, None] - values_PK[:, None, :]
    pairs = right_PK[:, :, None] & wrong_PK[:, None, :] & ~np.isnan(difference)
    count = int(pairs.sum())
    score = ((difference > 0) + 0.5 * (difference == 0))[pairs].sum()
    return (float(score / count) if count else math.nan), count


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
        python(
            SCORES
            + "d=d.drop_duplicates('id',keep='last'); "
            + LONG
            + DATA
            + JOIN
            + "print(d.groupby(['teachers','verdict']).weights.agg(weight='mean',sem='sem',n='size')"
            ".rename_axis(['teacher','verdict']).to_csv())"
        ),
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
        python(
            SCORES
            + "d=d.drop_duplicates('id',keep='last'); "
            + LONG
            + "c=d[s].rename(columns={'weights':'weight'}).corr('spearman'); print(c.rename_axis('a').reset_index()"
            ".melt('a',var_name='b',value_name='correlation').to_csv(index=False))"
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
