"""Run folders to one HTML file that needs no network; no torch here.

read        a run folder as plain values; what is missing is listed, never fatal
figures/    its figures: drawings, numbers, what to look for, how to compute them again
headline    the three answers on top
explorer    the problems, packed
page/       templates, style, script
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compact_distill.errors import InputError
from compact_distill.report.compare import compare_figures, compare_page, verdict
from compact_distill.report.export import export_figures
from compact_distill.report.read import RunData, read_run
from compact_distill.report.run_page import figures, run_page
from compact_distill.report.terminal import comparison, summary
from compact_distill.runs.files import atomic_write

__all__ = ["RunData", "comparison", "read_run", "summary", "verdict", "write_report"]


def write_report(
    runs: Sequence[str | Path],
    out: str | Path | None = None,
    export: str | Path | None = None,
    *,
    png: bool = True,
    paired: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the report of a run, or one page that compares several.

    Args:
        runs: run folders.
        out: the file to write; default: `report.html` in the run folder, or `compare.html` in the current folder.
        export: also write every figure's files into this folder.
        png: whether `export` writes PNG besides CSV and SVG.
        paired: for each run after the first, its student compared with the first run's on the same rows, as
            `eval/changes.json` has it; without it the comparison shows no differences.

    Returns:
        The page's path.

    Raises:
        InputError: no run, a path that is no run folder, a file that cannot be written.
    """
    if not runs:
        raise InputError("report needs at least one run folder, got none; as in `compact report runs/first`")
    data = [read_run(path) for path in runs]
    path = Path(out) if out is not None else data[0].path / "report.html" if len(data) == 1 else Path("compare.html")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise InputError(f"{path} must be a file in an existing folder; choose another --out")
    if export is not None:
        export_figures(figures(data[0]) if len(data) == 1 else compare_figures(data, paired), Path(export), png=png)
    page = run_page(data[0]) if len(data) == 1 else compare_page(data, paired)
    with atomic_write(path) as file:
        file.write(page)
    return path
