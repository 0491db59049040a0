"""Every figure as files: CSV and SVG always, PNG where the renderer is installed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compact_distill.errors import InputError
from compact_distill.report.figure import Figure
from compact_distill.report.page import read
from compact_distill.report.palette import LIGHT, with_colours
from compact_distill.report.svg import Sheet
from compact_distill.runs.files import atomic_write

_ZOOM = 3  # pixels of a PNG per unit of the drawing


def export_figures(figures: Iterable[Figure], folder: Path, *, png: bool = True) -> list[Path]:
    """Write KEY.csv, and KEY.svg and KEY.png (KEY-1, KEY-2 ... where a figure has several drawings).

    Args:
        figures: what to write.
        folder: where to; it is made.
        png: also write PNG.

    Raises:
        InputError: PNG is asked for and resvg-py is not installed (nothing is written), or the folder is a file.
    """
    figures = list(figures)
    renderer = _renderer() if png else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--export {folder} must be a folder that can be written: {error.strerror}") from error
    css = with_colours(read("charts.css"), LIGHT)
    written = []
    for figure in figures:
        written.append(_write_text(folder / f"{figure.key}.csv", figure.table.csv()))
        for number, sheet in enumerate(figure.sheets, start=1):
            stem = figure.key if len(figure.sheets) == 1 else f"{figure.key}-{number}"
            drawing = standalone(sheet, css)
            written.append(_write_text(folder / f"{stem}.svg", drawing))
            if renderer is not None:
                path = folder / f"{stem}.png"
                path.write_bytes(bytes(renderer.svg_to_bytes(svg_string=drawing, zoom=_ZOOM, background="#ffffff")))
                written.append(path)
    return written


def standalone(sheet: Sheet, css: str) -> str:
    """A drawing that needs no page around it: with its size and style inside."""
    width, height = sheet.root.attrib["viewBox"].split()[2:]
    body = sheet.xml().split(">", 1)
    return f'{body[0]} width="{width}" height="{height}"><style>{css}</style>{body[1]}\n'


def _renderer() -> Any:
    try:
        import resvg_py
    except ImportError:
        raise InputError(
            "--export writes PNG with resvg-py, which is not installed; "
            "run `pip install 'compact-distill[png]'`, or pass --no-png for CSV and SVG only"
        ) from None
    return resvg_py


def _write_text(path: Path, text: str) -> Path:
    with atomic_write(path) as file:
        file.write(text)
    return path
