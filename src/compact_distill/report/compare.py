"""Several runs side by side: results, whom each trusted, losses, and what differs in their settings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import yaml

from compact_distill.report.charts import Line, Mark, interval_chart, line_chart
from compact_distill.report.figure import Figure, Key, Table
from compact_distill.report.figures.results import final_results
from compact_distill.report.figures.training import TRAIN_POINTS, loss_curve
from compact_distill.report.headline import headline, most_trusted, weight_shares
from compact_distill.report.page import render
from compact_distill.report.read import RunData
from compact_distill.report.read_eval import Change, read_changes
from compact_distill.report.svg import series
from compact_distill.report.text import DASH, clean, duration, listed, percent, plural, points, short


def run_names(runs: Sequence[RunData]) -> list[str]:
    """A different name for each run: its folder's, with the folder above it or a number where they meet."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{clean(run.path.resolve().parent.name)}/{run.name}" for run in runs]
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):
        seen[name] += 1
        names[i] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def compare_figures(runs: Sequence[RunData], paired: Sequence[Mapping[str, Any]] = ()) -> list[Figure]:
    """The figures of the comparison, those without data left out."""
    names = run_names(runs)
    found = (_accuracy(runs, names), _change(names, paired), _weights(runs, names), _loss(runs, names))
    return [figure for figure in found if figure is not None]


def compare_page(runs: Sequence[RunData], paired: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page that compares runs, as HTML; `paired` as `write_report` has it."""
    names = run_names(runs)
    section = [("overview", "Runs"), ("figures", "Figures"), ("settings", "Settings")]
    return render(
        "compare.html.jinja",
        ["page.js"],
        title=f"{plural(len(runs), 'run')} compared · compact-distill report",
        version=metadata.version("compact-distill"),
        sections=[{"id": key, "short": text} for key, text in section],
        headline=verdict(runs, paired),
        overview=overview(runs),
        verdicts=[(name, headline(run).verdict) for name, run in zip(names, runs, strict=True)],
        figures=compare_figures(runs, paired),
        settings=differing_settings(runs),
        missing=[(name, line) for name, run in zip(names, runs, strict=True) for line in run.missing]
        + [
            (name, f"{clean(entry.get('task'))} is not compared with {names[0]}: {clean(entry.get('why'))}")
            for name, document in zip(names[1:], paired, strict=False)
            for entry in document.get("missing", ())
        ],
    )


def overview(runs: Sequence[RunData]) -> Table:
    """One row a run: accuracy after training on every task, problems, time."""
    tasks = list(dict.fromkeys(task for run in runs for task, *_ in final_results(run)))
    rows: list[list[Any]] = []
    for name, run in zip(run_names(runs), runs, strict=True):
        after = {task: result for task, _, result in final_results(run)}
        seconds = sum(run.seconds().values())
        rows.append(
            [
                name,
                *(round(100 * r.accuracy, 1) if (r := after.get(task)) else None for task in tasks),
                len(run.problems) or None,
                len(run.teachers),
                most_trusted(run),
                duration(seconds) if seconds else DASH,
            ]
        )
    return Table(("run", *(f"{task}, %" for task in tasks), "problems", "teachers", "trusted most", "time"), rows)


def compared(names: Sequence[str], paired: Sequence[Mapping[str, Any]]) -> list[tuple[str, Change]]:
    """The paired changes with the later run's name."""
    return [(name, c) for name, document in zip(names[1:], paired, strict=False) for c in read_changes(document, [])]


def differing_settings(runs: Sequence[RunData]) -> Table:
    """Settings that are not the same in all runs, one column a run."""
    flat = [dict(_flat(_parsed(run.config))) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    rows = [
        (key, *(settings.get(key, DASH) for settings in flat))
        for key in keys
        if len({settings.get(key) for settings in flat}) > 1
    ]
    return Table(("setting", *run_names(runs)), rows)


def _parsed(config: str) -> Any:
    try:
        return yaml.safe_load(config)
    except yaml.YAMLError:
        return {}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{clean(key)}" if name else clean(key))
    elif name:
        yield name, clean(value)


def verdict(runs: Sequence[RunData], paired: Sequence[Mapping[str, Any]] = ()) -> str:
    """Which run is best on the learned tasks that all share, and whether that may be chance, in a sentence."""
    names = run_names(runs)
    tables = [{task: result for task, _, result in final_results(run) if result} for run in runs]
    shared = [t for t in tables[0] if all(t in table for table in tables) and tables[0][t].role != "retained"]
    if not shared:
        return f"{plural(len(runs), 'run')} without a learned benchmark in common."
    means = [sum(table[t].accuracy for t in shared) / len(shared) for table in tables]
    best = max(range(len(runs)), key=lambda i: means[i])
    ties = [name for name, mean in zip(names, means, strict=True) if mean == means[best]]
    where = f"on {listed(shared)}: {percent(means[best])}{' on average' if len(shared) > 1 else ''}"
    if len(ties) > 1:
        return f"{listed([short(name, 60) for name in ties])} are equal {where}."
    changes = {(name, change.task): change for name, change in compared(names, paired)}

    def surely_beats(one: int, other: int, task: str) -> bool:
        """On the same rows, where one of the two is the first run; else by intervals that do not overlap."""
        change = changes.get((names[one or other], task)) if 0 in (one, other) else None
        if change is None:
            return tables[one][task].low > tables[other][task].high
        return change.low > 0 if other == 0 else change.high < 0

    others = [i for i in range(len(runs)) if i != best]
    clear = all(any(surely_beats(best, i, task) for task in shared) for i in others)
    retained = [t for t in tables[0] if all(t in table for table in tables) and tables[0][t].role == "retained"]
    lost = [task for task in retained if any(surely_beats(i, best, task) for i in others)]
    sentence = f"{short(names[best], 60)} did best {where}{'' if clear else ', but that may be chance'}"
    return f"{sentence}; it retained less than another run on {listed(lost)}." if lost else f"{sentence}."


def _keys(names: Sequence[str]) -> list[Key]:
    return [Key(name, series(i), i) for i, name in enumerate(names)]


def _accuracy(runs: Sequence[RunData], names: Sequence[str]) -> Figure | None:
    tasks = list(dict.fromkeys(task for run in runs for task, *_ in final_results(run)))
    if not tasks:
        return None
    rows, table = [], []
    for task in tasks:
        marks = []
        for i, (name, run) in enumerate(zip(names, runs, strict=True)):
            result = next((after for t, _, after in final_results(run) if t == task), None)
            if result:
                marks.append(Mark(name, result.accuracy, result.low, result.high, series(i), i))
                table.append((name, task, result.role, result.accuracy, result.low, result.high, result.rows))
        rows.append((task, marks))
    return Figure(
        "compare_accuracy",
        "Accuracy after training",
        "Look for intervals that do not overlap. Where they do, the difference may be chance: a paired test on the "
        "same rows sees more. Bars are 95 % Wilson intervals.",
        [interval_chart("Accuracy", rows, x_label="share of right answers", show=lambda v: percent(v, 0))],
        Table(("run", "task", "role", "accuracy", "low", "high", "rows"), table),
        legend=_keys(names),
    )


def _change(names: Sequence[str], paired: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Each later run's student minus the first run's, on the same rows."""
    found = compared(names, paired)
    if not found:
        return None
    tasks = list(dict.fromkeys(change.task for _, change in found))
    place = {name: i for i, name in enumerate(names)}
    rows = [
        (
            task,
            [
                Mark(name, c.difference, c.low, c.high, series(place[name]), place[name])
                for name, c in found
                if c.task == task
            ],
        )
        for task in tasks
    ]
    columns = ("task", "role", "rows", "difference", "low", "high", "gained", "lost", "mcnemar_p")
    return Figure(
        "compare_change",
        f"Change against {short(names[0], 40)}",
        "A bar that crosses zero may be chance. Differences of the students on the same rows, in percentage points, "
        "with 95 % intervals of a paired bootstrap; p is the exact McNemar test.",
        [interval_chart("Difference, points", rows, x_label="points", show=lambda v: points(v, 0), reference=0.0)],
        Table(("run", *columns), [(name, *(getattr(c, key) for key in columns)) for name, c in found]),
        legend=_keys(names)[1:],
    )


def _weights(runs: Sequence[RunData], names: Sequence[str]) -> Figure | None:
    found = [{name: weight for name, weight, _ in weight_shares(run)} for run in runs]
    teachers = list(dict.fromkeys(name for weights in found for name in weights))
    if not teachers:
        return None
    rows, table = [], []
    for teacher in teachers:
        marks = [Mark(names[i], w[teacher], css=series(i), shape=i) for i, w in enumerate(found) if teacher in w]
        rows.append((teacher, marks))
        table += [(names[i], teacher, w[teacher]) for i, w in enumerate(found) if teacher in w]
    return Figure(
        "compare_weights",
        "Whom each run trusted",
        "Points of a row that lie apart mean that the settings changed whom the student listens to. Share of "
        "all weight, over each problem's last reading.",
        [interval_chart("Share of the weight", rows, x_label="share", show=lambda v: percent(v, 0))],
        Table(("run", "teacher", "share"), table),
        legend=_keys(names),
    )


def _loss(runs: Sequence[RunData], names: Sequence[str]) -> Figure | None:
    curves = [loss_curve(run) for run in runs]
    epochs = sorted({epoch for curve in curves for epoch, _ in curve})
    if not epochs:
        return None
    lines = []
    for i, curve in enumerate(curves):
        at = dict(curve)
        known = [(e, at[e]) for e in epochs if e in at]
        lines.append(Line(names[i], _filled(epochs, known), i))
    return Figure(
        "compare_loss",
        "Loss over training",
        "A run that ends lower fits its teachers better, which is not the same as answering better. Runs with other "
        f"scores or teachers have other losses: compare shapes, not heights. At most {TRAIN_POINTS} points a run.",
        [line_chart("Loss, nats", epochs, lines, x_label="epoch")],
        Table(("run", "epoch", "loss"), [(names[i], e, v) for i, curve in enumerate(curves) for e, v in curve]),
        legend=_keys(names),
    )


def _filled(epochs: Sequence[float], known: Sequence[tuple[float, float]]) -> list[float]:
    """A curve at all runs' epochs: straight between its own points, NaN outside of them."""
    if not known:
        return [math.nan] * len(epochs)
    values, i = [], 0
    for epoch in epochs:
        while i + 1 < len(known) and known[i + 1][0] <= epoch:
            i += 1
        (x0, y0), (x1, y1) = known[i], known[min(i + 1, len(known) - 1)]
        inside = known[0][0] <= epoch <= known[-1][0]
        values.append((y0 if x1 == x0 else y0 + (y1 - y0) * (epoch - x0) / (x1 - x0)) if inside else math.nan)
    return values
