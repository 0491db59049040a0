"""Before and after: accuracy on benchmarks."""

from __future__ import annotations

import math

from compact_distill.report.charts import Line, Mark, interval_chart, line_chart
from compact_distill.report.figure import Figure, Key, Table
from compact_distill.report.read import RunData
from compact_distill.report.read_eval import Result
from compact_distill.report.text import percent, points

_BEFORE, _AFTER = "base", "student"


def final_results(run: RunData) -> list[tuple[str, Result | None, Result | None]]:
    """Each task with its result before and after training, learned tasks first."""
    found = {(r.student, r.task): r for r in run.results}
    tasks = sorted({r.task for r in run.results}, key=lambda task: (_role(run, task) != "learned", task))
    pairs = [(task, found.get((_BEFORE, task)), found.get((_AFTER, task))) for task in tasks]
    return [pair for pair in pairs if pair[1] or pair[2]]


def _role(run: RunData, task: str) -> str | None:
    return next((r.role for r in run.results if r.task == task and r.role), None)


def accuracy(run: RunData) -> Figure | None:
    """Accuracy before and after, with intervals."""
    pairs = final_results(run)
    if not pairs:
        return None
    rows = []
    for task, before, after in pairs:
        marks = [
            Mark(name, r.accuracy, r.low, r.high, css, shape)
            for name, r, css, shape in (("before", before, "before", 0), ("after", after, "after", 2))
            if r
        ]
        rows.append((f"{task} ({_role(run, task)})" if _role(run, task) else task, marks))
    sheet = interval_chart(
        "Accuracy", rows, x_label="share of right answers", show=lambda v: percent(v, 0), joined=True, x_range=None
    )
    columns = ("student", "task", "role", "accuracy", "low", "high", "rows", "unparsed", "truncated")
    return Figure(
        "accuracy",
        "Accuracy before and after training",
        "Look for intervals that do not overlap: those changes are very likely real. Learned tasks should move right; "
        "retained tasks should stay. Bars are 95 % Wilson intervals over rows. An answer that could not be read "
        "counts as wrong, so watch the unparsed and truncated columns below before you trust a low number.",
        [sheet],
        Table(
            columns,
            [
                (r.student, r.task, r.role, r.accuracy, r.low, r.high, r.rows, r.unparsed, r.truncated)
                for r in run.results
            ],
        ),
        "python -c \"import glob, json; print('student,task,accuracy,low,high'); [print(p.split('/')[1], "
        "r['task']['name'], *(r['result'][k] for k in ('accuracy','low','high')), sep=',') "
        "for p in sorted(glob.glob('eval/*/*.json')) for r in [json.load(open(p))]]\"",
        legend=[Key("before (base)", "before", 0), Key("after (student)", "after", 2)],
    )


def change(run: RunData) -> Figure | None:
    """Difference after minus before on the same rows."""
    if not run.changes:
        return None
    order = sorted(run.changes, key=lambda c: (c.role != "learned", c.task))
    rows = [
        (
            f"{c.task}: {points(c.difference)} points",
            [
                Mark(
                    "after - before",
                    c.difference,
                    c.low,
                    c.high,
                    "after" if c.low > 0 else "wrong" if c.high < 0 else "s7",
                )
            ],
        )
        for c in order
    ]
    sheet = interval_chart(
        "Change, in percentage points", rows, x_label="after − before", show=lambda v: points(v, 0), reference=0.0
    )
    columns = ("task", "role", "rows", "difference", "low", "high", "gained", "lost", "mcnemar_p")
    return Figure(
        "change",
        "Change on the same rows",
        "Look at whether a bar crosses zero: grey bars do, so chance alone could explain them; blue is better, orange "
        "is worse. This is the sharper test, because both students answered the same rows (paired bootstrap, 95 %). "
        "Gained rows turned right, lost rows turned wrong; p is the exact McNemar test of the two counts.",
        [sheet],
        Table(columns, [tuple(getattr(c, name) for name in columns) for c in order]),
        "python -c \"import json; print('task,difference,low,high'); [print(*(c[k] for k in "
        "('task','difference','low','high')), sep=',') for c in json.load(open('eval/changes.json'))['changes']]\"",
    )


def accuracy_over_training(run: RunData) -> Figure | None:
    """Accuracy of the checkpoints, where more than base and student were evaluated."""
    epochs = sorted({r.epoch for r in run.results if r.epoch is not None})
    if len(epochs) < 3:
        return None
    lines = []
    tasks = [task for task, *_ in final_results(run)] or sorted({r.task for r in run.results})
    for index, task in enumerate(tasks):
        at = {r.epoch: r for r in run.results if r.task == task}
        column = [[getattr(at[e], key) if e in at else math.nan for e in epochs] for key in ("accuracy", "low", "high")]
        lines.append(Line(task, column[0], index, column[1], column[2]))
    rows = [(r.epoch, r.task, r.accuracy, r.low, r.high) for r in run.results if r.epoch is not None]
    return Figure(
        "accuracy_over_training",
        "Accuracy while training",
        "Look for the epoch after which learned tasks stop rising, and whether retained tasks start to fall there: "
        "that is where training could have ended. Bands are 95 % Wilson intervals.",
        [line_chart("Accuracy of the checkpoints", epochs, lines, x_label="epoch", show=lambda v: percent(v, 0))],
        Table(("epoch", "task", "accuracy", "low", "high"), sorted(rows)),
        "python -c \"import glob, json; print('epoch,task,accuracy'); [print(r['student']['epoch'], "
        "r['task']['name'], r['result']['accuracy'], sep=',') for p in sorted(glob.glob('eval/*/*.json')) "
        'for r in [json.load(open(p))]]"',
    )
