"""Pages that need no network, from run folders and from anything else that has figures; no torch here.

    read           a run folder as plain values; what is missing is listed, never fatal
    trace          its scores and weights as arrays
    headline       the three answers on top, and the signs of trouble
    figures_...    its figures: what was drawn, its numbers, what to look for
    explorer       its problems, packed
    pages          the page of a run, and of several compared

What other pages are built with stands on its own, in three modules:

    drawing        `Table`, `Key`: what stands in a figure; `Sheet`: SVG by hand
    charts         bars with intervals (`interval_chart` of `Mark`), `scatter_chart` of pairs of them, `line_chart` of
                   `Line`, `heat_chart`, `stack_chart`, `ridge_chart`
    html           `Page` of `Card`, `Check`, `Section`, `Figure` -> one HTML file; `export_figures`: CSV, SVG, PNG

A page of your own, as the study's:

    figure = Figure(
        "by_arm", "Accuracy by arm", "Look for intervals that do not overlap.",
        [interval_chart("Accuracy", [("equal", [Mark("equal", 0.61, 0.55, 0.67)])], x_label="share of right answers")],
        Table(("arm", "accuracy", "low", "high"), [("equal", 0.61, 0.55, 0.67)]),
    )
    section = Section("arms", "Which arm is best?", figures=[figure])
    html = Page(title="Study", sections=[section], headline="No arm is best.").html()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compact_distill.errors import InputError
from compact_distill.report import pages
from compact_distill.report.drawing import DASH, UNITS, Table, measured, moved, percent, short
from compact_distill.report.headline import headline, weight_shares
from compact_distill.report.html import cell, check_export, content_stamp, export_figures
from compact_distill.report.pages import verdict
from compact_distill.report.read import READ, RunData, read_run
from compact_distill.runs.files import atomic_write
from compact_distill.runs.folder import RunFolder
from compact_distill.runs.progress import text_table

__all__ = ["RunData", "comparison", "is_current", "read_run", "summary", "verdict", "write_report"]

_BAR = 24  # characters of a full bar
_NAME = 28


def write_report(
    runs: Sequence[str | Path | RunData],
    out: str | Path | None = None,
    export: str | Path | None = None,
    *,
    png: bool = True,
    paired: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the report of a run, or one page that compares several.

    ```python
    from compact_distill import write_report

    print(write_report(["runs/compact"]))  # runs/compact/report.html
    ```

    Several runs make one page: `write_report(["runs/first", "runs/second"], "compare.html")`.

    Args:
        runs: run folders, or what `read_run` made of them.
        out: the file to write; default: `report.html` in the run folder, or `compare.html` in the current folder.
        export: also write every figure's files into this folder.
        png: whether `export` writes PNG besides CSV and SVG.
        paired: for each run after the first, its student compared with the first run's on the same rows, as
            `eval/changes.json` has it; without it the comparison shows no differences.

    Returns:
        The page's path.

    Raises:
        InputError: no run, a path that is no run folder, a file that cannot be written or that a run writes.
    """
    if not runs:
        raise InputError("report needs at least one run folder, got none; as in `compact report runs/first`")
    data = [run if isinstance(run, RunData) else read_run(run) for run in runs]
    path = Path(out) if out is not None else data[0].path / "report.html" if len(data) == 1 else Path("compare.html")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise InputError(f"{path} must be a file in an existing folder; choose another --out")
    own = [RunFolder(run.path, None, {}) for run in data]
    if any(path.resolve() != run.report_path.resolve() and run.written_at(path, with_rationales=True) for run in own):
        raise InputError(f"{path} must not be a file that a run writes, or lie among them; choose another --out")
    if export is not None:
        check_export(Path(export), [run.path for run in data])
    sections = pages.run_sections(data[0]) if len(data) == 1 else pages.compare_sections(data, paired)
    if export is not None:
        export_figures([figure for part in sections for figure in part.figures], Path(export), png=png)
    html = pages.run_page(data[0], sections) if len(data) == 1 else pages.compare_page(data, sections, paired)
    # A run's own page is made of what lies beside it, and can be made again; any other file is somebody's.
    made_again = len(own) == 1 and path.resolve() == own[0].report_path.resolve()
    with atomic_write(path, keep=not made_again) as file:
        file.write(html)
        if len(data) == 1:
            file.write(_stamped(data[0].stamp))
    return path


def is_current(run: str | Path) -> bool:
    """Whether the run's own `report.html` is whole and made of exactly what the run folder holds now."""
    path, stamp = Path(run) / "report.html", _stamped(content_stamp(Path(run), READ)).encode()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(stamp), 0))
        return file.read() == stamp


def _stamped(stamp: str) -> str:
    return f"<!-- made of {stamp} -->\n"


def summary(run: RunData) -> str:
    """Verdict, accuracy before and after, weights of the teachers, and what is missing, as plain text."""
    head = headline(run)
    lines = [head.verdict, ""]
    if run.changes:
        width = max(len(short(c.task, _NAME)) for c in run.changes)
        for c in sorted((c for c in run.changes if c.main), key=lambda c: (c.role != "learned", c.task)):
            levels = f"{measured(c.before, c.metric):>7} → {measured(c.after, c.metric):>7}"
            change = f"{moved(c.difference, c.metric):>6} {'' if c.metric in UNITS else 'points '}"
            span = f"95 %: {moved(c.low, c.metric)} to {moved(c.high, c.metric)}"
            said = "no question gained or lost" if c.unchanged else span
            lines.append(f"  {short(c.task, _NAME):<{width}}  {levels}   {change}({said})")
        lines.append("")
    weights = weight_shares(run)
    if weights:
        width = max(len(short(name, _NAME)) for name, *_ in weights)
        lines.append("  teachers: share of the weight, and of the problems where theirs is the largest")
        for name, weight, wins in weights:
            bar = "█" * round(weight * _BAR)
            label = f"  {short(name, _NAME):<{width}}  {bar:<{_BAR}}"
            lines.append(f"{label} {percent(weight, 0):>5}  {percent(wins, 0):>5}")
        lines.append("")
    facts = [f"{name} {value}" for name, value, _ in head.facts if value != DASH]
    lines.append(f"  {' · '.join(facts)}")
    if run.missing:
        lines.append(f"  not shown: {'; '.join(run.missing)}")
    return "\n".join(lines)


def comparison(runs: Sequence[RunData], paired: Sequence[Mapping[str, Any]] = ()) -> str:
    """Which run did best, a row for each, paired changes, and the settings that differ, as plain text."""
    parts = [verdict(runs, paired), _aligned(pages.overview(runs))]
    changes = pages.compared(pages.run_names(runs), paired)
    if changes:
        rows = [
            (name, c.task, *(moved(v, c.metric) for v in (c.difference, c.low, c.high)), c.rows, c.mcnemar_p)
            for name, c in changes
            if c.main
        ]
        columns = (f"against {pages.run_names(runs)[0]}", "task", "points", "low", "high", "rows", "McNemar p")
        parts.append(_aligned(Table(columns, rows)))
    settings = pages.differing_settings(runs)
    if settings.rows:
        parts.append(_aligned(settings))
    return "\n\n".join(parts)


def _aligned(table: Table) -> str:
    """A table as columns of text, numbers to the right."""
    rows = [[short(str(column), _NAME) for column in table.columns]]
    rows += [[short(cell(value), _NAME) or DASH for value in row] for row in table.rows]
    columns = range(len(table.columns))
    left = [c for c in columns if not any(isinstance(row[c], int | float) for row in table.rows)]
    return "\n".join(text_table(rows, left))
