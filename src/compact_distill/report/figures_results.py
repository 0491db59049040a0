"""Figures of the outcome: results before and after, drift, and the course of training.

Each function gives a figure, or None where its data is missing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from compact_distill.report.charts import (
    Line,
    Mark,
    Show,
    interval_chart,
    line_chart,
    plane_chart,
)
from compact_distill.report.drawing import Chart, Figure, Key, Table, spaced
from compact_distill.report.read import RunData, TaskResult
from compact_distill.report.text import UNITS, moved, number, whole_percent, whole_points
from compact_distill.report.trace import Floats

_BEFORE, _AFTER = "base", "student"


def final_results(run: RunData) -> list[tuple[str, TaskResult | None, TaskResult | None]]:
    """Each task with its result before and after training by the measure that counts, learned tasks first."""
    found = {(r.student, r.task): r for r in run.results if r.main}
    tasks = sorted({r.task for r in run.results}, key=lambda task: (_role(run, task) != "learned", task))
    pairs = [(task, found.get((_BEFORE, task)), found.get((_AFTER, task))) for task in tasks]
    return [pair for pair in pairs if pair[1] or pair[2]]


def _role(run: RunData, task: str) -> str | None:
    return next((r.role for r in run.results if r.task == task and r.role), None)


def unit_charts(
    entries: Iterable[tuple[str, str, str, Mark]], title: str, prefix: str, label: str, show: Show, **more: Any
) -> list[Chart]:
    """A chart of intervals for accuracies, and one for each measure in another unit.

    Args:
        entries: task, what stands behind its name, measure, mark; marks of one task and measure share a row.
        title: of the accuracies' chart; `prefix` stands before the unit in the title of the others.
        label: of the accuracies' x axis; the others have their unit.
        show: numbers of accuracies.
        more: passed on to `interval_chart`.
    """
    charts, entries = [], list(entries)
    for unit in ("", *UNITS.values()):
        rows: dict[tuple[str, str, str], list[Mark]] = {}
        for task, behind, metric, mark in entries:
            if UNITS.get(metric, "") == unit:
                rows.setdefault((task, metric, behind), []).append(mark)
        measures = Counter(task for task, *_ in rows)
        named = [
            (f"{task}, {metric}{behind}" if measures[task] > 1 else f"{task}{behind}", marks)
            for (task, metric, behind), marks in rows.items()
        ]
        if rows and unit:
            whole = f"{prefix}{unit} (less is better)"
            charts.append(interval_chart(whole[:1].upper() + whole[1:], named, x_label=unit, **more))
        elif rows:
            charts.append(interval_chart(title, named, x_label=label, show=show, **more))
    return charts


def accuracy(run: RunData) -> Figure | None:
    """Results before and after, with intervals."""
    looks = {_BEFORE: ("before", 0), _AFTER: ("after", 2)}
    done = [r for r in run.results if r.student in looks]
    if not done:
        return None
    done.sort(key=lambda r: (_role(run, r.task) != "learned", r.task, r.metric, r.student != _BEFORE))
    entries = []
    for r in done:
        css, shape = looks[r.student]
        role = f" ({_role(run, r.task)})" if _role(run, r.task) else ""
        entries.append((r.task, role, r.metric, Mark(css, r.value, r.low, r.high, css, shape)))
    columns = ("student", "task", "role", "metric", "value", "low", "high", "rows", "unparsed", "truncated")
    return Figure(
        "accuracy",
        "Before and after training",
        "Look for intervals that do not overlap: those changes are very likely real. Learned tasks should move right; "
        "retained tasks should stay. Bars are 95 % intervals over rows (Wilson's, for accuracy). An answer that could "
        "not be read counts as wrong, so watch the unparsed and truncated columns below before you trust a low number.",
        unit_charts(entries, "Accuracy", "", "share of right answers", whole_percent, joined=True),
        Table(columns, [tuple(getattr(r, name) for name in columns) for r in run.results]),
        legend=[Key("before (base)", "before", 0), Key("after (student)", "after", 2)],
    )


CHANGE_COLUMNS = ("task", "role", "metric", "rows", "difference", "low", "high", "gained", "lost", "mcnemar_p")


def change(run: RunData) -> Figure | None:
    """Difference after minus before on the same rows."""
    if not run.changes:
        return None
    order = sorted(run.changes, key=lambda c: (c.role != "learned", c.task))
    entries = []
    for c in order:
        css = "after" if c.better else "wrong" if c.worse else "s7"
        mark = Mark("after - before", c.difference, c.low, c.high, css)
        entries.append((c.task, f": {moved(c.difference, c.metric)}", c.metric, mark))
    return Figure(
        "change",
        "Change on the same rows",
        "Look at whether a bar crosses zero: grey bars do, so chance alone could explain them; blue is better, orange "
        "is worse. This is the sharper test, because both students answered the same rows (paired bootstrap, 95 %). "
        "Gained rows turned right, lost rows turned wrong; p is the exact McNemar test of the two counts.",
        unit_charts(entries, "Change, percentage points", "change, ", "after − before", whole_points, reference=0.0),
        Table(CHANGE_COLUMNS, [tuple(getattr(c, name) for name in CHANGE_COLUMNS) for c in order]),
    )


def accuracy_over_training(run: RunData) -> Figure | None:
    """Accuracy of the checkpoints, where more than base and student were evaluated."""
    shares = [r for r in run.results if r.main and r.metric not in UNITS and r.epoch is not None]
    epochs = sorted({float(r.epoch) for r in shares if r.epoch is not None})
    if len(epochs) < 3:
        return None
    lines = []
    for index, task in enumerate(dict.fromkeys(r.task for r in shares)):
        at = {r.epoch: r for r in shares if r.task == task}
        column = [[getattr(at[e], key) if e in at else math.nan for e in epochs] for key in ("value", "low", "high")]
        lines.append(Line(task, column[0], index, column[1], column[2]))
    return Figure(
        "accuracy_over_training",
        "Accuracy while training",
        "Look for the epoch after which learned tasks stop rising, and whether retained tasks start to fall there: "
        "that is where training could have ended. Bands are 95 % Wilson intervals.",
        [line_chart("Accuracy of the checkpoints", epochs, lines, x_label="epoch", show=whole_percent)],
        Table(
            ("epoch", "task", "accuracy", "low", "high"),
            sorted((r.epoch, r.task, r.value, r.low, r.high) for r in shares),
        ),
    )


_PLANES = 3  # layers shown per set of prompts
_LEGEND = [Key("base", "before", 0), Key("student", "after", 2)]


def planes(run: RunData) -> Figure | None:
    """Base and student in the plane of the base's two principal components."""
    charts, table = [], []
    for part in run.drift:
        for index in spaced(len(part.layers), _PLANES):
            layer = part.layers[index].layer
            if not part.base[index]:
                continue
            charts.append(
                plane_chart(f"{part.role} prompts, layer {layer}", part.base[index], part.student[index], part.ids)
            )
            for who, cloud in (("base", part.base[index]), ("student", part.student[index])):
                table += [(part.role, layer, who, name, x, y) for name, (x, y) in zip(part.ids, cloud, strict=True)]
    if not charts:
        return None
    return Figure(
        "drift_planes",
        "Where prompts sit: base and student",
        "Each point is the hidden state of a prompt's last token, in the plane where the base varies most; a thin line "
        "joins a prompt's two states and the large marks are centroids. Clouds that lie on each other mean that "
        "training left this layer's picture of the prompts alone; a common shift of all points is the mark of "
        "forgetting on retained prompts.",
        charts,
        Table(("role", "layer", "student", "id", "x", "y"), table),
        legend=_LEGEND,
    )


def layer_curves(run: RunData) -> Figure | None:
    """Shift and similarity of each layer."""
    parts = [part for part in run.drift if part.layers]
    if not parts:
        return None
    layers = sorted({float(layer.layer) for part in parts for layer in part.layers})
    whole = layers if len(layers) <= 6 else []  # else round numbers are whole ones
    shifts, same = [], []
    for index, part in enumerate(parts):
        at = {layer.layer: layer for layer in part.layers}
        own = [at.get(int(layer)) for layer in layers]
        css = f"s{_role_index(part.role, index)}"
        for key, name, dashes in (("centroid_shift", "centre", ""), ("row_shift", "rows", " dashed")):
            values = [_or_nan(getattr(layer, key) if layer else None) for layer in own]
            shifts.append(Line(f"{part.role} {name}", values, _role_index(part.role, index), css=css + dashes))
        same.append(
            Line(part.role, [_or_nan(layer.cka if layer else None) for layer in own], _role_index(part.role, index))
        )
    charts = [
        line_chart("Shift, in spreads of the base", layers, shifts, x_label="layer", zero=True, x_ticks=whole),
        line_chart("Linear CKA (1 = the same)", layers, same, x_label="layer", x_ticks=whole),
    ]
    columns = ("layer", "centroid_shift", "row_shift", "centroid_distance", "row_distance", "cka")
    table = [(part.role, *(getattr(layer, c) for c in columns)) for part in parts for layer in part.layers]
    return Figure(
        "drift_layers",
        "How far each layer moved",
        "Look for layers where learned and retained prompts part: learned ones may move, retained ones should not. A "
        "shift of 1 is as far as the base's own prompts lie from their centre; solid lines show how far all moved "
        "together, dashed ones how far each did. CKA looks at all dimensions and ignores rotations.",
        charts,
        Table(("role", *columns), table),
    )


def divergence(run: RunData) -> Figure | None:
    """KL between the next-token distributions of base and student."""
    if not run.drift:
        return None
    rows, table = [], []
    for part in run.drift:
        marks = []
        for name, where, shape in (("kl_last", "after the prompt", 2), ("kl_prompt", "over the prompt's tokens", 0)):
            mean, low, high = getattr(part, name)
            marks.append(Mark(where, mean, low, high, "after" if name == "kl_last" else "before", shape))
            table.append((part.role, name, mean, low, high))
        rows.append((f"{part.role}: {number(part.kl_last[0])} nats after the prompt", marks))
    return Figure(
        "divergence",
        "How differently it goes on",
        "KL(base ‖ student) of the next-token distributions, in nats. A large value on retained prompts warns of "
        "changed habits even where accuracy held. It looks one token ahead, so a value near 0 proves nothing about "
        "what follows. 95 % intervals.",
        [interval_chart("KL divergence, nats", rows, x_label="nats", reference=0.0)],
        Table(("role", "where", "mean", "low", "high"), table),
        legend=[Key("after the prompt", "after", 2), Key("mean over the prompt", "before", 0)],
    )


def _role_index(role: str, index: int) -> int:
    return {"learned": 0, "retained": 1}.get(role, index + 2)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


TRAIN_POINTS = 200  # of a curve; more log lines are averaged

# By key of the training log: title, and whether zero belongs to the axis.
CURVES = {
    "loss": ("Loss, nats", False),
    "loss_likelihood": ("Likelihood term, nats per token", False),
    "loss_consistency": ("Consistency term, nats", True),
    "grad_norm": ("Gradient norm", True),
    "problems_per_second": ("Throughput, problems per second", True),
    "memory_mib": ("Peak memory, MiB", True),
}


def training(run: RunData) -> Figure | None:
    """All curves of the training log."""
    values = {key: np.array([log_number(row.get(key)) for row in run.log]) for key in ("epoch", *CURVES)}
    if not len(run.log) or np.isnan(values["loss"]).all():
        return None
    logged = ~np.isnan(values["loss"])
    keys = [key for key in CURVES if not np.isnan(values[key][logged]).all()]
    group = math.ceil(logged.sum() / TRAIN_POINTS)
    parts = {key: np.split(column[logged], range(group, logged.sum(), group)) for key, column in values.items()}
    means = {key: [_over(np.mean, part) for part in parts[key]] for key in ("epoch", *keys)}
    charts = []
    for key in keys:
        title, zero = CURVES[key]
        low, high = ([_over(pick, p) for p in parts[key]] if group > 1 else () for pick in (np.min, np.max))
        line = Line(key, means[key], 0, low, high)
        charts.append(line_chart(title, means["epoch"], [line], x_label="epoch", zero=zero, labels=False))
    lines = f"Each point is the mean of {group} log lines, the band their range. " if group > 1 else ""
    return Figure(
        "training",
        "Loss, gradients, speed and memory",
        "The loss should fall fast, then slowly; one that rises again, or gradient norms that grow, hint at a learning "
        "rate that is too high. The likelihood is weighted, so it also moves when the weights do. Throughput should be "
        f"level: dips are pauses to save or evaluate, or a busy machine. {lines}"
        "Memory is the peak so far, of the accelerator or of the process.",
        charts,
        Table(("epoch", *keys), list(zip(*(means[key] for key in ("epoch", *keys)), strict=True))),
    )


def loss_curve(run: RunData) -> list[tuple[float, float]]:
    """(epoch, loss) of at most `TRAIN_POINTS` points."""
    figure = training(run)
    return [(row[0], row[1]) for row in figure.table.rows] if figure else []


def log_number(value: Any) -> float:
    """A value of the training log; NaN where it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _over(reduce: Callable[[Floats], Any], values: Floats) -> float:
    """A reduction of the values that are not NaN; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(reduce(known)) if len(known) else math.nan
