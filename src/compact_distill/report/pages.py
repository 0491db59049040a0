"""The page of one run, and the page that compares several: which sections they have, and what stands in each."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from compact_distill.report import figures_results as results
from compact_distill.report import figures_weights  # noqa: F401 (its figures are registered)
from compact_distill.report.charts import Line, Mark, interval_chart, line_chart
from compact_distill.report.drawing import (
    DASH,
    UNITS,
    Key,
    Table,
    clean,
    flat,
    listed,
    percent,
    plain,
    plural,
    series,
    short,
    whole_percent,
    whole_points,
)
from compact_distill.report.explorer import pack_explorer, read_gains
from compact_distill.report.headline import about, headline, most_trusted, stage_seconds, weight_shares
from compact_distill.report.html import Drawn, Page, Section, figure, figures_of, fragment
from compact_distill.report.read import PairedChange, RunData, TaskResult, read_changes
from compact_distill.report.signatures import signatures
from compact_distill.runs.progress import duration

MAX_BYTES = 15_000_000  # of a page
_EXPLORER = "<!--explorer-->"  # no text can hold it: what is put into a template is escaped


# ---- one run

# Their figures are those of figures_*.py.
_SECTIONS = (
    Section(
        "results",
        "Did it get better, and what did it lose?",
        "Learned tasks are what the teachers taught; retained tasks are what the student could do before.",
        nothing="Nothing was evaluated. `compact eval` measures the base and the student on the same rows.",
    ),
    Section(
        "teachers",
        "Whom did it learn from?",
        "A rationale is one teacher's {solution}. For every problem the student weighs its teachers' "
        "rationales by how compatible they are with it, anew each time it reads the problem; the weights of a "
        "problem sum to 1.",
        nothing="scores.jsonl holds no weights yet; training writes them.",
    ),
    Section(
        "scores",
        "Are the scores worth trusting?",
        "Three scores make the weight: consensus with the other rationales, adaptability (how much the belief in "
        "the gold answer rises while reading), and difficulty, which lowers it.",
        nothing="This needs scores.jsonl, and verdicts in data.jsonl.",
    ),
    Section(
        "explorer",
        "Read the rationales",
        "Every problem with its teachers side by side. Colours show where the student's belief in the gold answer "
        "rose or fell while it read.",
        nothing="data.jsonl holds no problems.",
    ),
    Section(
        "drift",
        "What moved inside?",
        "A student may keep its scores and still be another model inside. Base and student read the same prompts; "
        "here is how far their hidden states and next words moved apart.",
        nothing="Drift was not measured. `compact drift BASE STUDENT` writes eval/drift.json.",
    ),
    Section(
        "training",
        "How did training go?",
        "One line of the log for each logged step.",
        nothing="training_log.jsonl holds no losses yet.",
    ),
    Section(
        "data",
        "What was it given?",
        "The training data as it was used. Nothing was cut or guessed: what could not be used was left out, and is "
        "counted here.",
        nothing="data.jsonl holds no problems.",
    ),
    Section(
        "reproduce",
        "How to get the same again",
        "The same configuration, versions, data and seed give the same student.",
    ),
)


def run_sections(run: RunData) -> list[Section]:
    """The sections of a run's page, figures without data left out."""
    values = {"commands": _commands(run), "pinned": _pinned(run.manifest), "config": run.config}
    extra = {"reproduce": fragment("reproduce.html.jinja", **values)}
    if run.problems or run.trace:
        extra["explorer"] = Markup(_EXPLORER)
    what = "answer" if run.answers_alone else "worked-out solution"
    return [
        replace(
            part,
            lede=part.lede.format(solution=what),
            figures=figures_of(part.id, run),
            extra=extra.get(part.id, ""),
        )
        for part in _SECTIONS
    ]


def run_page(run: RunData, sections: Sequence[Section], max_bytes: int = MAX_BYTES) -> str:
    """The page of a run, as HTML of at most `max_bytes` bytes; the explorer holds as many problems as fit."""
    top, gains = headline(run), read_gains(run)
    damaged = [f"gains.jsonl has {plural(gains.damaged, 'damaged line')}, left out"] if gains.damaged else []
    html = Page(
        title=short(run.title, 60),
        sections=sections,
        eyebrow=f"Report of the run “{run.title}”",
        headline=top.verdict,
        lede=about(run),
        cards=top.cards,
        facts=top.facts,
        checks=signatures(run),
        missing=[*run.missing, *damaged],
        scripts=("page.js", "explorer.js"),
    ).html()
    explorer = pack_explorer(run, gains, max_bytes - len(html.encode()) - 10_000)
    return html.replace(_EXPLORER, fragment("explorer.html.jinja", explorer=explorer) if explorer else "", 1)


def _commands(run: RunData) -> str:
    versions = run.manifest.get("versions")
    version = versions.get("compact-distill") if isinstance(versions, dict) else None
    lines = (
        f"pip install compact-distill=={clean(version)}" if version else "pip install compact-distill",
        f"compact run {shlex.quote(str(run.path / 'config.yaml'))} --set output=NEW_FOLDER",
        f"compact report {shlex.quote(str(run.path))}",
    )
    return clean("\n".join(lines))


def _pinned(manifest: Mapping[str, Any]) -> Table:
    """What the manifest pins, flattened to names and values."""
    sections = ("versions", "hardware", "seeds", "student", "data", "prompt", "decoding")
    found = [row for section in sections for row in flat(manifest.get(section), section, ": ")]
    return Table(("what", "value"), [(name, plain(value)) for name, value in found if value is not None])


# ---- several runs


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


def compare_sections(runs: Sequence[RunData], paired: Sequence[Mapping[str, Any]] = ()) -> list[Section]:
    """The sections of the page that compares runs; `paired` as `write_report` has it."""
    settings, found = differing_settings(runs), figures_of("compare", _Compared(runs, run_names(runs), paired))
    return [
        Section("runs", "The runs", tables=[("The runs", overview(runs))]),
        Section("figures", "Side by side", figures=found, nothing="The runs hold no results, weights or losses yet."),
        Section(
            "settings",
            "What differs in their settings",
            tables=[("Settings that differ", settings)] if settings.rows else (),
            nothing="Their configurations are the same, or missing.",
        ),
    ]


def compare_page(runs: Sequence[RunData], sections: Sequence[Section], paired: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page that compares runs, as HTML."""
    named = list(zip(run_names(runs), runs, strict=True))
    gaps = [f"{name}: {line}" for name, run in named for line in run.missing]
    for (name, _), document in zip(named[1:], paired, strict=False):
        for entry in document.get("missing", ()):
            why = clean(entry.get("why"))
            gaps.append(f"{name}: {clean(entry.get('task'))} is not compared with {named[0][0]}: {why}")
    return Page(
        title=f"{plural(len(runs), 'run')} compared",
        sections=sections,
        eyebrow="Comparison of runs",
        headline=verdict(runs, paired),
        notes=[(name, headline(run).verdict) for name, run in named],
        missing=gaps,
    ).html()


def overview(runs: Sequence[RunData]) -> Table:
    """One row a run: results after training on every task, problems, time."""
    found = [(task, r.metric) for run in runs for task, *pair in results.final_results(run) for r in pair if r]
    tasks = dict(found)
    rows: list[list[Any]] = []
    for name, run in zip(run_names(runs), runs, strict=True):
        after = {task: result for task, _, result in results.final_results(run)}
        seconds, sizes = sum(stage_seconds(run).values()), (len(run.trained_on) or None, len(run.taught))
        values = [_brief(after.get(task)) for task in tasks]
        rows.append([name, *values, *sizes, most_trusted(run), duration(seconds) if seconds else DASH])
    named = [f"{task}, {UNITS.get(metric, '%')}" for task, metric in tasks.items()]
    return Table(("run", *named, "problems", "teachers", "trusted most", "time"), rows)


def _brief(result: TaskResult | None) -> float | None:
    """A result as the overview shows it: per cent with one decimal, or in the measure's own unit."""
    return None if result is None else result.value if result.metric in UNITS else round(100 * result.value, 1)


def compared(names: Sequence[str], paired: Sequence[Mapping[str, Any]]) -> list[tuple[str, PairedChange]]:
    """The paired changes with the later run's name."""
    return [(name, c) for name, document in zip(names[1:], paired, strict=False) for c in read_changes(document, [])]


def differing_settings(runs: Sequence[RunData]) -> Table:
    """Settings that are not the same in all runs, one column a run; where a run lies is none that matters."""
    settings_of = [{name: plain(value) for name, value in flat(run.settings, "", ".")} for run in runs]
    keys = sorted({key for settings in settings_of for key in settings} - {"output"})
    rows = [
        (key, *(settings.get(key, DASH) for settings in settings_of))
        for key in keys
        if len({settings.get(key) for settings in settings_of}) > 1
    ]
    return Table(("setting", *run_names(runs)), rows)


def verdict(runs: Sequence[RunData], paired: Sequence[Mapping[str, Any]] = ()) -> str:
    """Which run is best on the learned tasks that all share, and whether that may be chance, in a sentence."""
    names = run_names(runs)
    tables = [
        {task: result for task, _, result in results.final_results(run) if result and result.metric not in UNITS}
        for run in runs
    ]
    shared = [t for t in tables[0] if all(t in table for table in tables) and tables[0][t].role != "retained"]
    if not shared:
        return f"{plural(len(runs), 'run')} without a learned benchmark in common."
    means = [sum(table[t].value for t in shared) / len(shared) for table in tables]
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


@dataclass(frozen=True)
class _Compared:
    """Runs with their names, and each later one's changes against the first."""

    runs: Sequence[RunData]
    names: Sequence[str]
    paired: Sequence[Mapping[str, Any]]

    def mark(self, i: int, value: float, low: float = math.nan, high: float = math.nan) -> Mark:
        return Mark(self.names[i], value, low, high, series(i), i)

    def keys(self) -> list[Key]:
        return [Key(name, series(i), i) for i, name in enumerate(self.names)]


@figure("compare", "Results after training")
def compare_accuracy(all_: _Compared) -> Drawn | None:
    """Look for intervals that do not overlap. Where they do, the difference may be chance: a paired test on the same
    rows sees more. Bars are 95 % intervals (Wilson's, for accuracy).
    """
    found = [(i, after) for i, run in enumerate(all_.runs) for *_, after in results.final_results(run) if after]
    tasks = list(dict.fromkeys(after.task for _, after in found))
    found.sort(key=lambda pair: tasks.index(pair[1].task))
    entries = [(r.task, "", r.metric, all_.mark(i, r.value, r.low, r.high)) for i, r in found]
    charts = results.unit_charts(entries, "Accuracy", "", "share of right answers", whole_percent)
    columns = ("task", "role", "metric", "value", "low", "high", "rows")
    table = results.table_of(columns, (r for _, r in found))
    rows = [(all_.names[i], *row) for (i, _), row in zip(found, table.rows, strict=True)]
    return Drawn(charts, Table(("run", *columns), rows), all_.keys()) if found else None


@figure("compare", "Change against the first run")
def compare_change(all_: _Compared) -> Drawn | None:
    """A bar that crosses zero may be chance. Differences of the students on the same rows, with 95 % intervals of a
    paired bootstrap; p is the exact McNemar test.
    """
    found, place = compared(all_.names, all_.paired), {name: i for i, name in enumerate(all_.names)}
    entries = [(c.task, "", c.metric, all_.mark(place[n], c.difference, c.low, c.high)) for n, c in found]
    title, label = "Difference, percentage points", "points"
    charts = results.unit_charts(entries, title, "difference, ", label, whole_points, reference=0.0)
    table = results.table_of(results.CHANGE_COLUMNS, (c for _, c in found))
    rows = [(name, *row) for (name, _), row in zip(found, table.rows, strict=True)]
    against = f"Change against {short(all_.names[0], 40)}"
    return Drawn(charts, Table(("run", *table.columns), rows), all_.keys()[1:], title=against) if found else None


@figure("compare", "Whom each run trusted")
def compare_weights(all_: _Compared) -> Drawn | None:
    """Points of a row that lie apart mean that the settings changed whom the student listens to. Share of all weight,
    over each problem's last reading.
    """
    found = [(name, i, weight) for i, run in enumerate(all_.runs) for name, weight, _ in weight_shares(run)]
    rows: dict[str, list[Mark]] = {}
    for name, i, weight in found:
        rows.setdefault(name, []).append(all_.mark(i, weight))
    chart = interval_chart("Share of the weight", list(rows.items()), x_label="share", show=whole_percent)
    found.sort(key=lambda row: list(rows).index(row[0]))
    table = Table(("run", "teacher", "share"), [(all_.names[i], name, weight) for name, i, weight in found])
    return Drawn([chart], table, all_.keys()) if found else None


@figure("compare", "Loss over training")
def compare_loss(all_: _Compared) -> Drawn | None:
    """A run that ends lower fits its teachers better, which is not the same as answering better. Runs with other scores
    or teachers have other losses: compare shapes, not heights.
    """
    curves = [results.loss_curve(run) for run in all_.runs]
    epochs = sorted({epoch for curve in curves for epoch, _ in curve})
    lines = []
    for i, curve in enumerate(curves):
        if curve:
            at, losses = np.array(curve).T
            lines.append(Line(all_.names[i], np.interp(epochs, at, losses, left=math.nan, right=math.nan).tolist(), i))
    chart = line_chart("Loss, nats", epochs, lines, x_label="epoch")
    rows = [(name, *point) for name, curve in zip(all_.names, curves, strict=True) for point in curve]
    note = f" At most {results.TRAIN_POINTS} points a run."
    return Drawn([chart], Table(("run", "epoch", "loss"), rows), all_.keys(), note=note) if epochs else None
