"""The pages of a study and of a diagnosis, each one HTML file. They claim only what an interval shows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from compact_distill.errors import RunError
from compact_distill.evaluation.examine import ROLES
from compact_distill.evaluation.result_files import read_attempts, rows_path
from compact_distill.records import Verdict
from compact_distill.report.charts import Mark, heat_chart, interval_chart, scatter_chart
from compact_distill.report.drawing import Table, listed, number, percent, plural, points, short
from compact_distill.report.html import Card, Figure, Page, Section, fragment
from compact_distill.runs.files import atomic_write
from compact_distill.study.arms import REFERENCES
from compact_distill.study.training import cost_section, weight_section

_SHOWN, _LONGEST = 12, 2000  # problems for each pair of arms; characters of a text
_SURE = 0.05


def write_page(out: Path, document: Mapping[str, Any], costs: Mapping[str, Any]) -> Path:
    """Write `study.html` into a study's folder; returns its path."""
    path = out / "study.html"
    arms = {name: arm for name, arm in document["arms"].items() if "tasks" in arm}
    sections = [_arms(arms), _results(document, arms), _differences(document), weight_section(arms)]
    sections += [_problems(out, document, arms), cost_section(out, arms, costs), _runs(document)]
    runs = sorted({len(arm["runs"]) for arm in arms.values()}) or [0]
    text = Page(
        title="Study",
        sections=[section for section in sections if section.figures or section.tables or section.extra],
        headline=headline(document),
        eyebrow=f"study of {student_name(document['student'])}",
        lede=f"One student, trained in {plural(len(arms), 'way')} ({_counted(runs)} of each"
        f"{_BUDGETS[document['budget']]}), then asked the same questions. In brackets: 95 % intervals over "
        + ("runs and questions." if runs[-1] > 1 else "questions."),
        cards=[card for role in ROLES if (card := _card(document, arms, role))],
        missing=[
            *(f"{name} failed: {reason}" for name, reason in document["failed"].items()),
            *(f"{name} is not shown: {reason}" for name, reason in document.get("left_out", {}).items()),
        ],
    ).html()
    with atomic_write(path) as file:
        file.write(text)
    return path


def _counted(runs: Sequence[int]) -> str:
    return plural(runs[0], "run") if len(runs) == 1 else f"{runs[0]} to {plural(runs[-1], 'run')}"


def headline(document: Mapping[str, Any]) -> str:
    """What the study shows, against its baseline: only differences whose interval and corrected p leave 0 out."""
    for reference, differences in document["differences"].items():
        if not differences:
            continue
        clear: dict[tuple[str, str], list[str]] = {}
        for name, found in differences.items():
            for role, own in found.items():
                if own["p_holm"] < _SURE and (own["low"] > 0 or own["high"] < 0):
                    clear.setdefault((role, "more" if own["value"] > 0 else "less"), []).append(name)
        if not clear:
            return f"No arm differs clearly from {reference}, neither in what it learned nor in what it kept."
        told = [f"{listed(names)} {_VERBS[role]} {how} than {reference}" for (role, how), names in clear.items()]
        return "; ".join(told)[:1].upper() + "; ".join(told)[1:] + "."
    return "There is no arm to compare with: name one `equal` or `compact`."


_BUDGETS = {"tokens": ", on equally many tokens of rationales", "steps": ", for equally many steps", "none": ""}
_VERBS = {"learned": "learned", "retained": "kept"}


def _card(document: Mapping[str, Any], arms: Mapping[str, Any], role: str) -> Card | None:
    found = {name: arm[role] for name, arm in arms.items() if role in arm}
    if not found:
        return None
    lines = [f"{name}: {percent(own['value'])} ({_span(own)})" for name, own in found.items()]
    before = document["base"].get(role)
    lines = ([f"before training: {percent(before['value'])}"] if before else []) + lines
    values = [own["value"] for own in found.values()]
    what = {"learned": "What was learned?", "retained": "What was kept?"}[role]
    least, most = percent(min(values)), percent(max(values))
    return Card(what, least if least == most else f"{least} to {most}", lines)


def _span(estimate: Mapping[str, float]) -> str:
    return f"{percent(estimate['low'])} to {percent(estimate['high'])}"


def _marks(estimates: Mapping[str, Mapping[str, float]], css: str) -> list[tuple[str, list[Mark]]]:
    return [(name, [_mark(name, own, css)]) for name, own in estimates.items()]


def _mark(name: str, estimate: Mapping[str, float], css: str = "", shape: int = 0) -> Mark:
    return Mark(name, estimate["value"], estimate["low"], estimate["high"], css, shape)


def _results(document: Mapping[str, Any], arms: Mapping[str, Any]) -> Section:
    figures = []
    everyone = {"before training": document["base"], **arms}
    for role, css in zip(ROLES, ("s0", "s1"), strict=True):
        found = {name: arm[role] for name, arm in everyone.items() if role in arm}
        if found:
            rows = [(name, own["value"], own["low"], own["high"]) for name, own in found.items()]
            chart = interval_chart(f"Right answers, {role}", _marks(found, css), x_label="share of rows", show=percent)
            look = "Look for intervals that do not overlap; paired differences below are sharper."
            figures.append(
                Figure(role, f"Accuracy, {role}", look, [chart], Table(("arm", "accuracy", "low", "high"), rows))
            )
    both = {name: arm for name, arm in everyone.items() if all(role in arm for role in ROLES)}
    if both:
        dots = [
            (_mark(name, arm["learned"], f"s{i % 8}", i), _mark(name, arm["retained"]))
            for i, (name, arm) in enumerate(both.items())
        ]
        chart = scatter_chart("Retained against learned", dots, x_label="learned", y_label="retained", show=percent)
        table = Table(("arm", "learned", "retained"), [(one.name, one.value, two.value) for one, two in dots])
        look = "Up and to the right is better: more learned, less forgotten."
        figures.append(Figure("frontier", "Learned and retained", look, [chart], table))
    lines = [
        (name, task, own["role"], own["rows"], own["value"], own["low"], own["high"])
        for name, arm in everyone.items()
        for task, own in arm["tasks"].items()
    ]
    columns = ("arm", "benchmark", "role", "rows", "accuracy", "low", "high")
    tables = [("By benchmark", Table(columns, lines))]
    texts = [
        (name, task, own["metric"], own["value"])
        for name, arm in everyone.items()
        for task, own in arm["likelihood"].items()
    ]
    tables += (
        [("Likelihood of texts (less is better)", Table(("arm", "text", "measure", "value"), texts))] if texts else []
    )
    return Section("results", "What each arm learned and kept", figures=figures, tables=tables)


def _differences(document: Mapping[str, Any]) -> Section:
    figures = []
    for reference, differences in document["differences"].items():
        for role, css in zip(ROLES, ("s0", "s1"), strict=True):
            found = {name: own[role] for name, own in differences.items() if role in own}
            if not found:
                continue
            title = f"{role.capitalize()}: minus {reference}"
            chart = interval_chart(title, _marks(found, css), x_label="percentage points", show=points, reference=0.0)
            rows = [(n, o["value"], o["low"], o["high"], o["p"], o["p_holm"], o["seeds"]) for n, o in found.items()]
            table = Table(("arm", "difference", "low", "high", "p", "p (Holm)", "seeds"), rows)
            look = "An interval that leaves 0 out is a difference on rows and seeds like these; p is of these students."
            figures.append(Figure(f"minus_{reference}_{role}", title, look, [chart], table))
    lede = (
        "On the same rows. Intervals: bootstrap over seeds and rows; at least Tango's where few rows differ. p: exact "
        "sign-flip test over rows (with one seed McNemar's), two-sided, corrected for the number of arms by Holm."
    )
    return Section("differences", "Paired differences", lede, figures)


def _problems(out: Path, document: Mapping[str, Any], arms: Mapping[str, Any]) -> Section:
    """Counts of rows that one arm solves (in over half of its seeds) and another does not, and the rows themselves."""
    figures, parts = [], []
    for task, rows in document["rows"].items():
        solved = {name: np.array(shares) > 0.5 for name, shares in rows["arms"].items()}
        names = list(solved)
        if len(names) < 2:
            continue
        cells = [[float((solved[a] & ~solved[b]).sum()) if a != b else math.nan for b in names] for a in names]
        most = max(max(v for v in row if not math.isnan(v)) for row in cells) or 1.0
        chart = heat_chart("Row solves, column does not", names, cells, show=number, most=most)
        table = Table(
            ("arm", *names),
            [(a, *(None if math.isnan(v) else v for v in row)) for a, row in zip(names, cells, strict=True)],
        )
        figures.append(
            Figure(
                f"solved_{task}",
                f"Who solves what: {short(task, 40)}",
                "Rows of the benchmark, by pairs.",
                [chart],
                table,
            )
        )
        parts.append(_examples(out, task, rows["ids"], solved, arms))
    lede = "A row counts as solved where over half of an arm's seeds got it right."
    return Section("problems", "Which problems one arm solves and another does not", lede, figures,
                   extra=Markup("").join(parts))  # fmt: skip


def _examples(out: Path, task: str, ids: Sequence[str], solved: Mapping[str, Any], arms: Mapping[str, Any]) -> Markup:
    """Rows on which an arm and the reference part ways: question, gold answer, and what both wrote."""
    reference = next((name for name in REFERENCES if name in solved), next(iter(solved)))
    written = {name: _written(out, arms[name], task) for name in solved}
    parts = []
    for name in solved:
        for one, other in ((name, reference), (reference, name)) if name != reference else ():
            chosen = [ids[i] for i in np.flatnonzero(solved[one] & ~solved[other]).tolist()]
            lines = [
                fragment(
                    "solved.html.jinja",
                    sides=[
                        (one, _choose(written[one].get(row, []), True)),
                        (other, _choose(written[other].get(row, []), False)),
                    ],
                )
                for row in chosen[:_SHOWN]
                if written[one].get(row) and written[other].get(row)
            ]
            if chosen:
                more = f", the first {len(lines)} of them here" if len(lines) < len(chosen) else ""
                summary = Markup("<summary>{}: {} solves {} that {} does not{} ({}, {})</summary>").format(
                    short(task, 40), one, len(chosen), other, more, _link(arms[one], one), _link(arms[other], other)
                )
                parts.append(Markup('<details class="solved">{}{}</details>').format(summary, Markup("").join(lines)))
    return Markup("").join(parts)


def _written(out: Path, arm: Mapping[str, Any], task: str) -> dict[str, list[dict[str, Any]]]:
    """What the arm's students wrote, by the row's id: a row of each seed and sample."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed, run in arm["runs"].items():
        with contextlib.suppress(RunError):  # a study is read again when one of its runs is gone
            for row in read_attempts(rows_path(out / run / "eval" / "student", task)):
                text = str(row.get("text") or "")
                shown = {"text": text[:_LONGEST] + (" [...]" if len(text) > _LONGEST else ""), "seed": seed}
                shown |= {key: str(row.get(key, "?")) for key in ("question", "gold", "answer")}
                found.setdefault(row["id"], []).append({**shown, "right": row.get("verdict") == Verdict.CORRECT})
    return found


def _choose(rows: Sequence[dict[str, Any]], right: bool) -> dict[str, Any]:
    """Of what several seeds wrote the first that shows why the row counts as solved, or not."""
    return next((row for row in rows if row["right"] == right), rows[0])


def _link(arm: Mapping[str, Any], name: str) -> Markup:
    """Into the explorer of the arm's first run, which shows what it was trained on."""
    run = next(iter(arm["runs"].values()))
    return Markup('<a href="{}/report.html#explorer">{}: its report</a>').format(run, name)


def _arms(arms: Mapping[str, Any]) -> Section:
    rows = [(name, arm["what"], _flow(arm["settings"])) for name, arm in arms.items()]
    lede = (
        "All arms train the same student and are asked the same; they differ in what the last column says and in how "
        "rationales are weighed or arranged."
    )
    table = Table(("arm", "what counts", "settings beside the base's"), rows)
    return Section("arms", "What is compared", lede, tables=[("Arms", table)])


def _flow(settings: Mapping[str, Any]) -> str:
    """Settings as YAML on one line; words where there are none."""
    if not settings:
        return "none: the base's"
    return yaml.safe_dump(dict(settings), default_flow_style=True, sort_keys=False, width=math.inf).strip()


def _runs(document: Mapping[str, Any]) -> Section:
    links = [
        Markup('<li><a href="{}/report.html">{}, seed {}</a></li>').format(run, name, seed)
        for name, arm in document["arms"].items()
        for seed, run in arm["runs"].items()
    ]
    return Section("runs", "Every run's own report", extra=Markup("<ul>{}</ul>").format(Markup("").join(links)))


# ---- before training


def diagnosis_page(document: Mapping[str, Any]) -> str:
    """The page of `compact diagnose`: which scores know what helps this student."""
    sign = "An interval right of 0: more of it means more help; left of 0: less; across 0: nothing is shown."
    judge = (
        "How often a right rationale stands above a wrong one of its problem; below, where less is better (difficulty)."
    )
    helps = "The effect of a step on one of its rationales alone; compare with the weight that it gets today."
    told, label = document["tells_right"], "Spearman, within problems"
    predicts = _intervals("predicts", "What predicts the effect", document["predicts"], label, sign, 0.0, (-1, 1))
    right = _intervals("tells_right", "What tells right from wrong", told, "area (0.5: chance)", judge, 0.5, (0, 1))
    helped = {name: own["effectiveness"] for name, own in document["teachers"].items()}
    fall = "fall of the validation loss, nats a token"
    teachers = _intervals("teachers", "Which teacher helps this student", helped, fall, helps, 0.0)
    names = list(document["redundancy"])
    cells = [[_value(document["redundancy"][a][b]) for b in names] for a in names]
    tenths = lambda value: number(round(value, 1))  # noqa: E731
    chart = heat_chart("Spearman, within problems", names, cells, show=tenths)
    table = Table(("score", *names), [(a, *row) for a, row in zip(names, cells, strict=True)])
    same = Figure("redundancy", "Which scores say the same", "Near 1 or -1: one of the two is enough.", [chart], table)
    chosen = document["coefficients"]
    tables = [("Teachers", _teacher_table(document))]
    if chosen["regression"] is not None:
        rows = [(name, chosen["configured"].get(name), value) for name, value in chosen["regression"].items()]
        tables.append(("Coefficients", Table(("score", "configured", "by regression"), rows)))
    what = plural(document["validation"], "other problem")
    scores = Section("scores", "Which scores know what helps", _explained(chosen), [predicts, right, same])
    return Page(
        title="Diagnosis",
        sections=[
            replace(scores, tables=tables[1:]),
            Section("teachers", "Whose rationales help", "", [teachers], tables[:1]),
        ],
        headline=_diagnosis_headline(document),
        eyebrow=f"diagnosis of {student_name(document['student'])}, before any training",
        lede=f"{len(document['rationales'])} rationales of {plural(document['problems'], 'problem')}; the loss is that "
        f"of right rationales of {what}.",
    ).html()


def _diagnosis_headline(document: Mapping[str, Any]) -> str:
    """What the intervals show of the weights and of the scores; how many were tried, since one of twenty is chance."""
    weight = document["predicts"]["weight"]
    tried = {name: own for name, own in document["predicts"].items() if own and name not in ("weight", "cosine")}
    known = [name for name, own in tried.items() if own["low"] > 0 or own["high"] < 0]
    predict = f"{listed(known)} {'predicts' if len(known) == 1 else 'predict'}" if known else "none clearly predicts"
    if weight is None:
        weights = "cannot be told apart here"
    elif weight["low"] > 0:
        weights = "go to the rationales that help this student"
    elif weight["high"] < 0:
        weights = "go away from the rationales that help this student"
    else:
        weights = "do not clearly follow what helps this student"
    return f"Today's weights {weights}. Of {plural(len(tried), 'score')} tried, {predict} what helps."


def _explained(chosen: Mapping[str, Any]) -> str:
    if chosen["explained"] is None:
        return "Too few problems for a regression."
    return (
        f"A ridge regression on all scores explains {percent(chosen['explained'], 0)} of the effect's variance within "
        "problems that it has not seen; where that is not above 0, its coefficients mean nothing."
    )


def _intervals(
    key: str,
    title: str,
    found: Mapping[str, Any],
    label: str,
    look: str,
    reference: float,
    span: tuple[float, float] | None = None,
) -> Figure:
    known = {name: own for name, own in found.items() if own}
    chart = interval_chart(title, _marks(known, "s0"), x_label=label, reference=reference, x_range=span)
    rows = [(name, own["value"], own["low"], own["high"], own["problems"]) for name, own in known.items()]
    return Figure(key, title, look, [chart], Table(("name", "mean", "low", "high", "problems"), rows))


def _value(estimate: Mapping[str, float] | None) -> float:
    return math.nan if estimate is None else estimate["value"]


def _teacher_table(document: Mapping[str, Any]) -> Table:
    rows = [
        (name, _value(own["effectiveness"]), own["weight"], own["right"]) for name, own in document["teachers"].items()
    ]
    return Table(("teacher", "effect, nats a token", "weight today", "right"), rows)


def student_name(student: str) -> str:
    """A student as a page shows it: a folder by its own name, since its path says nothing to other readers."""
    return Path(student).name if Path(student).exists() else student
