"""Figures of the outcome and its course: results before and after, drift, the training log, and the data."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from compact_distill.report.charts import (
    Line,
    Mark,
    Ridge,
    heat_chart,
    interval_chart,
    line_chart,
    plane_chart,
    ridge_chart,
    stack_chart,
)
from compact_distill.report.drawing import (
    UNITS,
    Chart,
    Key,
    Show,
    Table,
    moved,
    number,
    spaced,
    whole_percent,
    whole_points,
)
from compact_distill.report.html import Drawn, figure
from compact_distill.report.read import RIGHT, WRONG, RunData, TaskResult, UsedRationale
from compact_distill.report.trace import Floats

_BEFORE, _AFTER = "base", "student"
CHANGE_COLUMNS = ("task", "role", "metric", "rows", "difference", "low", "high", "gained", "lost", "mcnemar_p")


def table_of(columns: Sequence[str], records: Iterable[Any]) -> Table:
    """A table of records' fields."""
    return Table(columns, [tuple(getattr(record, name) for name in columns) for record in records])


# ---- results before and after


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


@figure("results", "Before and after training")
def accuracy(run: RunData) -> Drawn | None:
    """Look for intervals that do not overlap: those changes are very likely real. Learned tasks should move right;
    retained tasks should stay. Bars are 95 % intervals over rows (Wilson's, for accuracy). An answer that could not be
    read counts as wrong, so watch the unparsed and truncated columns below before you trust a low number.
    """
    looks = {_BEFORE: Key("before (base)", "before", 0), _AFTER: Key("after (student)", "after", 2)}
    done = [r for r in run.results if r.student in looks]
    done.sort(key=lambda r: (_role(run, r.task) != "learned", r.task, r.metric, r.student != _BEFORE))
    entries = []
    for r in done:
        look, role = looks[r.student], _role(run, r.task)
        mark = Mark(look.css, r.value, r.low, r.high, look.css, look.shape)
        entries.append((r.task, f" ({role})" if role else "", r.metric, mark))
    charts = unit_charts(entries, "Accuracy", "", "share of right answers", whole_percent, joined=True)
    columns = ("student", "task", "role", "metric", "value", "low", "high", "rows", "unparsed", "truncated")
    return Drawn(charts, table_of(columns, run.results), list(looks.values())) if done else None


@figure("results", "Change on the same rows")
def change(run: RunData) -> Drawn | None:
    """Look at whether a bar crosses zero: grey bars do, so chance alone could explain them; blue is better, orange is
    worse. This is the sharper test, because both students answered the same rows (paired bootstrap, 95 %). Gained rows
    turned right, lost rows turned wrong; p is the exact McNemar test of the two counts.
    """
    order = sorted(run.changes, key=lambda c: (c.role != "learned", c.task))
    entries = []
    for c in order:
        css = "after" if c.better else "wrong" if c.worse else "s7"
        mark = Mark("after - before", c.difference, c.low, c.high, css)
        entries.append((c.task, f": {moved(c.difference, c.metric)}", c.metric, mark))
    title, label = "Change, percentage points", "after − before"
    charts = unit_charts(entries, title, "change, ", label, whole_points, reference=0.0)
    return Drawn(charts, table_of(CHANGE_COLUMNS, order)) if order else None


@figure("results", "Accuracy while training")
def accuracy_over_training(run: RunData) -> Drawn | None:
    """Look for the epoch after which learned tasks stop rising, and whether retained tasks start to fall there: that is
    where training could have ended. Bands are 95 % Wilson intervals.
    """
    shares = [r for r in run.results if r.main and r.metric not in UNITS and r.epoch is not None]
    epochs = sorted({float(r.epoch) for r in shares if r.epoch is not None})
    if len(epochs) < 3:
        return None
    lines = []
    for index, task in enumerate(dict.fromkeys(r.task for r in shares)):
        at = {r.epoch: r for r in shares if r.task == task}
        column = [[getattr(at.get(e), key, math.nan) for e in epochs] for key in ("value", "low", "high")]
        lines.append(Line(task, column[0], index, column[1], column[2]))
    chart = line_chart("Accuracy of the checkpoints", epochs, lines, x_label="epoch", show=whole_percent)
    rows = sorted((r.epoch, r.task, r.value, r.low, r.high) for r in shares)
    return Drawn([chart], Table(("epoch", "task", "accuracy", "low", "high"), rows))


# ---- drift

_PLANES = 3  # layers shown per set of prompts
_ROLES = {"learned": 0, "retained": 1}


@figure("drift", "Where prompts sit: base and student")
def drift_planes(run: RunData) -> Drawn | None:
    """Each point is the hidden state of a prompt's last token, in the plane where the base varies most; a thin line
    joins a prompt's two states and the large marks are centroids. Clouds that lie on each other mean that training left
    this layer's picture of the prompts alone; a common shift of all points is the mark of forgetting on retained
    prompts.
    """
    charts, table = [], []
    for part in run.drift:
        for index in spaced(len(part.layers), _PLANES):
            layer, clouds = part.layers[index].layer, (part.base[index], part.student[index])
            if clouds[0]:
                charts.append(plane_chart(f"{part.role} prompts, layer {layer}", *clouds, part.ids))
                for who, cloud in zip((_BEFORE, _AFTER), clouds, strict=True):
                    table += [(part.role, layer, who, name, x, y) for name, (x, y) in zip(part.ids, cloud, strict=True)]
    keys = [Key("base", "before", 0), Key("student", "after", 2)]
    return Drawn(charts, Table(("role", "layer", "student", "id", "x", "y"), table), keys) if charts else None


@figure("drift", "How far each layer moved")
def drift_layers(run: RunData) -> Drawn | None:
    """Look for layers where learned and retained prompts part: learned ones may move, retained ones should not. A shift
    of 1 is as far as the base's own prompts lie from their centre; solid lines show how far all moved together, dashed
    ones how far each did. CKA looks at all dimensions and ignores rotations.
    """
    parts = [part for part in run.drift if part.layers]
    layers = sorted({float(layer.layer) for part in parts for layer in part.layers})
    columns = ("layer", "centroid_shift", "row_shift", "centroid_distance", "row_distance", "cka")
    shifts: list[Line] = []
    same: list[Line] = []
    table: list[tuple[Any, ...]] = []
    for index, part in enumerate(parts):
        table += [(part.role, *row) for row in table_of(columns, part.layers).rows]
        at, look = {layer.layer: layer for layer in part.layers}, _ROLES.get(part.role, index + 2)
        for key, name, css, lines in (
            ("centroid_shift", f"{part.role} centre", f"s{look}", shifts),
            ("row_shift", f"{part.role} rows", f"s{look} dashed", shifts),
            ("cka", part.role, "", same),
        ):
            found = [getattr(at.get(int(layer)), key, None) for layer in layers]
            lines.append(Line(name, [math.nan if v is None else v for v in found], look, css=css))
    charts = [
        line_chart("Shift, in spreads of the base", layers, shifts, x_label="layer", zero=True),
        line_chart("Linear CKA (1 = the same)", layers, same, x_label="layer"),
    ]
    return Drawn(charts, Table(("role", *columns), table)) if parts else None


@figure("drift", "How differently it goes on")
def divergence(run: RunData) -> Drawn | None:
    """KL(base ‖ student) of the next-token distributions, in nats. A large value on retained prompts warns of changed
    habits even where accuracy held. It looks one token ahead, so a value near 0 proves nothing about what follows. 95 %
    intervals.
    """
    keys = {"kl_last": Key("after the prompt", "after", 2), "kl_prompt": Key("mean over the prompt", "before", 0)}
    rows, table = [], []
    for part in run.drift:
        marks = []
        for name, key in keys.items():
            mean, low, high = getattr(part, name)
            marks.append(Mark(key.name, mean, low, high, key.css, key.shape))
            table.append((part.role, name, mean, low, high))
        rows.append((f"{part.role}: {number(part.kl_last[0])} nats after the prompt", marks))
    chart = interval_chart("KL divergence, nats", rows, x_label="nats", reference=0.0)
    return Drawn([chart], Table(("role", "where", "mean", "low", "high"), table), list(keys.values())) if rows else None


# ---- the training log

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


@figure("training", "Loss, gradients, speed and memory")
def training(run: RunData) -> Drawn | None:
    """The loss should fall fast, then slowly; one that rises again, or gradient norms that grow, hint at a learning
    rate that is too high. The likelihood is weighted, so it also moves when the weights do. Throughput should be level:
    dips are pauses to save or evaluate, or a busy machine. Memory is the peak so far, of the accelerator or of the
    process.
    """
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
    table = Table(("epoch", *keys), list(zip(*means.values(), strict=True)))
    note = f" Each point is the mean of {group} log lines, the band their range." if group > 1 else ""
    return Drawn(charts, table, note=note)


def loss_curve(run: RunData) -> list[tuple[float, float]]:
    """(epoch, loss) of at most `TRAIN_POINTS` points."""
    drawn = training(run)
    return [(row[0], row[1]) for row in drawn.table.rows] if drawn else []


def log_number(value: Any) -> float:
    """A value of the training log; NaN where it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _over(reduce: Callable[[Floats], Any], values: Floats) -> float:
    """A reduction of the values that are not NaN; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(reduce(known)) if len(known) else math.nan


# ---- what the student was given

_BINS = 24
# Parts of a teacher's bar, in order, with their classes: those that train, then those that do not.
_PARTS = {
    "right": "right",
    "wrong": "wrong",
    "not checked": "s7",
    "no weight": "gap3",
    "unparsed": "gap1",
    "no answer": "gap1",
    "over length": "gap2",
    "missing": "gap3",
    "rejected": "gap4",
}


def _part_of(rationale: UsedRationale, trained: bool) -> str:
    """What became of a rationale, in the words of the figure."""
    if rationale.status != "ok":
        return rationale.status.replace("_", " ")
    return {RIGHT: "right", WRONG: "wrong"}.get(rationale.verdict or "", "not checked") if trained else "no weight"


@figure("data", "What became of the rationales")
def data_status(run: RunData) -> Drawn | None:
    """Blue and orange parts trained the student; everything grey was left out, never cut or guessed. A teacher with
    much grey needs a longer max_length (over length) or a clearer end of its answers (unparsed).
    """
    counts = Counter(
        (name, _part_of(r, name in run.trained_on.get(p.id, ())))
        for p in run.problems.values()
        for name, r in p.rationales.items()
    )
    classes = _PARTS | {part: "gap4" for _, part in counts if part not in _PARTS}
    rows = [(name, [(part, counts[name, part]) for part in classes]) for name in run.teachers]
    used = sum(count for (_, part), count in counts.items() if part in ("right", "wrong", "not checked"))
    table = [(name, part, count) for name, parts in rows for part, count in parts if count]
    there = {part for _, part, _ in table}
    keys = [Key(part, css) for part, css in classes.items() if part in there]
    chart = stack_chart("Rationales", rows, classes, x_label="rationales")
    said = f"{used:,} of {sum(counts.values()):,} rationales took part in training."
    if weightless := sum(count for (_, part), count in counts.items() if part == "no weight"):
        why = "the weight rule left them out, or training ended before it read them"
        said += f" {weightless:,} had no weight in any reading: {why}."
    note = " Those that were not checked trained it too." if "not checked" in there else ""
    table_of_parts = Table(("teacher", "part", "count"), table)
    return Drawn([chart], table_of_parts, keys, said, note=note) if run.problems else None


@figure("data", "How long they are")
def data_lengths(run: RunData) -> Drawn | None:
    """Look for teachers that write much longer than the others: difficulty is a mean over tokens, so length alone does
    not weigh, but long rationales cost most of the time. Completions in tokens; ticks are medians.
    """
    tokens = {name: [r.tokens for r in run.rationales(name) if r.tokens] for name in run.teachers}
    edges = np.linspace(0, max((t for own in tokens.values() for t in own), default=0), _BINS + 1)
    ridges, table = [], []
    for name, own in tokens.items():
        counts = np.histogram(own, edges)[0] if edges[-1] else np.zeros(_BINS, dtype=int)
        median = float(np.median(own)) if own else math.nan
        table += [(name, float(edges[b]), float(edges[b + 1]), int(counts[b]), median) for b in range(_BINS)]
        shares = (counts / max(counts.sum(), 1)).tolist()
        label = f"{name}: median {number(median)}"
        ridges.append(Ridge(label, shares, [], median, math.nan, f"{label} tokens"))
    chart = ridge_chart("Tokens of a completion", edges.tolist(), ridges, x_label="tokens", above="s0")
    return Drawn([chart], Table(("teacher", "from", "to", "count", "median"), table)) if edges[-1] else None


@figure("data", "Who agrees with whom")
def agreement(run: RunData) -> Drawn | None:
    """Teachers that always agree teach the same thing twice; one that agrees with nobody is either the best or the
    worst, and the weights should tell which. Two answers agree if both are right or their texts are equal.
    """
    order, same = run.teachers, {}
    for a, b in itertools.product(order, order):
        pairs = [(p.rationales.get(a), p.rationales.get(b)) for p in run.problems.values()]
        found = [_agree(x, y) for x, y in pairs if x and y and x.answer is not None and y.answer is not None]
        same[a, b] = sum(found) / len(found) if found else math.nan, len(found)
    cells = [[same[a, b][0] for b in order] for a in order]
    table = [(a, b, *found) for (a, b), found in same.items() if a != b]
    chart = heat_chart("Same answer", order, cells, show=whole_percent)
    return Drawn([chart], Table(("a", "b", "share", "n"), table)) if len(order) > 1 and run.problems else None


def _agree(a: UsedRationale, b: UsedRationale) -> bool:
    return a.verdict == b.verdict == RIGHT or (a.answer or "").strip() == (b.answer or "").strip()


@figure("data", "How many teachers were right")
def right_per_problem(run: RunData) -> Drawn | None:
    """Problems at 0 teach only errors unless wrong rationales are rejected; problems in the middle are where weighing
    can help most, because right and wrong stand side by side.
    """
    counts = Counter(sum(r.verdict == RIGHT for r in p.rationales.values()) for p in run.problems.values())
    table = [(i, counts[i]) for i in range(len(run.teachers) + 1)]
    rows = [(f"{i} right: {count:,}", [("problems", count)]) for i, count in table]
    chart = stack_chart("Problems by number of right teachers", rows, {"problems": "s0"}, x_label="problems")
    return Drawn([chart], Table(("right", "problems"), table)) if any(r.verdict for r in run.rationales()) else None
