"""The shell of every page: one self-contained HTML file, with style and script inline, both bound by their hashes.

`Page` takes a headline, cards, checks and sections of figures and tables; `export_figures` writes the same figures
as files. The content security policy allows no network, no other script and no style attribute. Model text reaches a
page through autoescaped templates, through ElementTree, or packed in base64, which explorer.js writes as plain text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from compact_distill.errors import InputError
from compact_distill.report.drawing import DARK, LIGHT, NARROW, WIDE, Chart, Key, Sheet, Table, number, svg_element
from compact_distill.runs.files import atomic_write, move_aside
from compact_distill.runs.progress import say

_TABLE_ROWS = 200  # of a figure's table in the page; the CSV has all
_ZOOM = 3  # pixels of a PNG per unit of the drawing


@dataclass(frozen=True)
class Figure:
    """One figure of a page: its drawings side by side, every number in them, and what to look for."""

    key: str  # its name in addresses and file names
    title: str
    caption: str
    charts: Sequence[Chart]
    table: Table
    legend: Sequence[Key] = ()  # what the drawings share
    finding: str = ""  # what these numbers say, in a sentence


class Drawn(NamedTuple):
    """What a figure's data make of it; `note` goes behind its caption, `title` in place of its title."""

    charts: Sequence[Chart]
    table: Table
    legend: Sequence[Key] = ()
    finding: str = ""
    note: str = ""
    title: str = ""


_Draw = Callable[[Any], Drawn | None]
_FIGURES: dict[str, list[Callable[[Any], Figure | None]]] = {}  # by section, in their order


def figure(section: str, title: str) -> Callable[[_Draw], _Draw]:
    """Put a figure into a section of a page: the function below draws it from the run, or gives None without data.

    The function's name is the figure's key, its docstring the caption.
    """

    def register(draw: _Draw) -> _Draw:
        key, caption = draw.__name__, " ".join((draw.__doc__ or "").split())

        def make(run: Any) -> Figure | None:
            drawn = draw(run)
            return drawn and Figure(key, drawn.title or title, caption + drawn.note, *drawn[:4])

        _FIGURES.setdefault(section, []).append(make)
        return draw

    return register


def figures_of(section: str, run: Any) -> list[Figure]:
    """A section's figures, those left out that have no data."""
    return [made for make in _FIGURES.get(section, ()) if (made := make(run)) is not None]


@dataclass(frozen=True)
class Section:
    """A part of a page: a title, a sentence, figures, tables below them, and a `fragment` below these."""

    id: str  # its name in addresses, and in the bar on top
    title: str
    lede: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[tuple[str, Table]] = ()  # each with its name
    nothing: str = ""  # what to say where it holds none of them
    extra: str = ""


@dataclass(frozen=True)
class Card:
    """A card: a question with a short answer and lines of detail; `tone` (good, bad or nothing) colours the answer."""

    question: str
    value: str
    details: Sequence[str] = ()
    tone: str = ""


@dataclass(frozen=True)
class Check:
    """A sign of trouble that was looked for: `state` is ok, look, bad or unknown; `value` is the number behind it."""

    name: str
    state: str
    value: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page: its finding on the first screen, with what belongs to it; then its sections."""

    title: str  # of the window
    sections: Sequence[Section]
    headline: str  # the finding, in one sentence
    eyebrow: str = ""  # what kind of page of what this is
    lede: str = ""
    cards: Sequence[Card] = ()
    facts: Sequence[tuple[str, str, str]] = ()  # name, value, note of small numbers
    checks: Sequence[Check] = ()  # bad ones are shown first
    notes: Sequence[tuple[str, str]] = ()  # name and sentence, such as one a run
    missing: Sequence[str] = ()  # what could not be shown; text between backticks is set as code
    scripts: Sequence[str] = ("page.js",)  # of `assets/`, put together into one

    def html(self) -> str:
        """The page as one file."""
        light, dark = (_theme(*named) for named in (("light", LIGHT), ("dark", DARK)))
        themes = (
            f":root{{{light}}}:root[data-theme=dark]{{{dark}}}"
            f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        )
        style, script = themes + _asset("charts.css") + _asset("page.css"), "".join(map(_asset, self.scripts))
        policy = (
            f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        )
        checks = sorted(self.checks, key=lambda check: ("bad", "look", "unknown", "ok").index(check.state))
        page = replace(self, checks=checks)
        return str(fragment("page.html.jinja", page=page, style=Markup(style), script=Markup(script), policy=policy))


def fragment(template: str, **values: Any) -> Markup:
    """A template of `assets/` with its values escaped."""
    return Markup(_environment().get_template(template).render(**values))


def _theme(name: str, colours: dict[str, str]) -> str:
    return f"color-scheme:{name};" + "".join(f"--{name}:{value};" for name, value in colours.items())


@cache
def _asset(name: str) -> str:
    return (resources.files("compact_distill.report") / "assets" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("compact_distill.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "svg": lambda chart, width: Markup(chart(width).xml()),
        "key_svg": _key_svg,
        "cell": cell,
        "rows": rows,
        "code": _code,
    }
    environment.globals |= {"table_rows": _TABLE_ROWS, "version": metadata.version("compact-distill")}
    return environment


def _hash(text: str) -> str:
    """The source expression that allows exactly this text (Content Security Policy, level 2)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _code(text: str) -> Markup:
    """Text with what stands between backticks set as code."""
    parts = [
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _key_svg(key: Key) -> Markup:
    """A legend's marker."""
    sheet = Sheet("")
    sheet.root = svg_element(viewBox="0 0 14 14", **{"class": "key", "aria-hidden": "true"})
    if key.css.startswith("gap"):
        sheet.mark("rect", f"part {key.css}", x=1, y=2, width=12, height=10)
    else:
        sheet.marker(7, 7, key.shape, key.css, size=5)
    return Markup(sheet.xml())


def cell(value: Any) -> str:
    """A table's value as it is shown."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    return number(float(value), 4) if isinstance(value, int | float) else str(value)


def rows(figures: Sequence[Figure]) -> list[tuple[Figure, int, list[int]]]:
    """Each figure with its width in sixths of the page and its charts' widths in pixels, so that every row is full.

    A figure takes a third for each of its charts; what a row lacks is given to its figures, and a figure that would
    stand alone shares the row before.
    """
    lines: list[list[tuple[Figure, int]]] = []
    for figure in figures:
        wanted = 2 * min(len(figure.charts), 3)
        if lines and sum(width for _, width in lines[-1]) + wanted <= 6:
            lines[-1].append((figure, wanted))
        else:
            lines.append([(figure, wanted)])
    if len(lines) > 1 and len(lines[-1]) == 1 and lines[-1][0][1] == 2 and len(lines[-2]) == 3:
        lines[-1].insert(0, lines[-2].pop())
    sized = [(figure, wanted * 6 // sum(w for _, w in line)) for line in lines for figure, wanted in line]
    return [(figure, width, _chart_widths(len(figure.charts), width)) for figure, width in sized]


def _chart_widths(charts: int, sixths: int) -> list[int]:
    """Three charts a row of the page, and two where that would leave a gap: five are three and two."""
    if sixths < 6:
        return [WIDE if sixths == 3 else NARROW] * charts
    halves = min({0: 0, 1: 4, 2: 2}[charts % 3], charts)
    return [NARROW] * (charts - halves) + [WIDE] * halves


def content_stamp(folder: Path, patterns: Sequence[str]) -> str:
    """A hash of what a page is made of: the contents of a folder's files that match, and this package's version."""
    stamp = hashlib.sha256(metadata.version("compact-distill").encode())
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        stamp.update(f"\n{file.relative_to(folder).as_posix()}\n".encode())
        with file.open("rb") as content:
            stamp.update(hashlib.file_digest(content, "sha256").digest())
    return stamp.hexdigest()


# ---- the same figures as files


def export_figures(figures: Iterable[Figure], folder: Path, *, png: bool = True) -> None:
    """Write KEY.csv, KEY.svg and with `png` KEY.png (KEY-1, KEY-2 ... where a figure has several charts) into a folder.

    Raises:
        InputError: PNG is asked for and resvg-py is not installed (nothing is written), or the folder is a file.
    """
    renderer = _renderer() if png else None
    if folder.is_dir() and any(folder.iterdir()):
        say(f"{folder} held figures already; they are now in {move_aside(folder)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--export {folder} must be a folder that can be written: {error.strerror}") from error
    for figure in figures:
        files = {f"{figure.key}.csv": figure.table.csv()}
        for i, chart in enumerate(figure.charts, start=1):
            stem = figure.key if len(figure.charts) == 1 else f"{figure.key}-{i}"
            files[f"{stem}.svg"] = drawing = standalone(chart(NARROW))
            if renderer is not None:
                picture = renderer.svg_to_bytes(svg_string=drawing, zoom=_ZOOM, background="#ffffff")
                (folder / f"{stem}.png").write_bytes(bytes(picture))
        for name, content in files.items():
            with atomic_write(folder / name) as file:
                file.write(content)


_EXPORTED = (".csv", ".svg", ".png")


def check_export(folder: Path, runs: Sequence[Path]) -> None:
    """Refuse a folder for figures in which something else lies, or that a run lies in.

    Raises:
        InputError: choose another.
    """
    inside = any(folder.resolve() in (run.resolve(), *run.resolve().parents) for run in runs)
    foreign = [p.name for p in folder.iterdir() if p.suffix not in _EXPORTED or p.is_dir()] if folder.is_dir() else []
    if inside or foreign:
        what = f"holds {foreign[0]}" if foreign else "is or holds a run"
        raise InputError(f"--export {folder} must be a folder for figures alone, but {what}; choose a new one")


def standalone(sheet: Sheet) -> str:
    """A drawing that needs no page around it: with its size, style and colours inside."""
    css = _asset("charts.css")
    for name, value in LIGHT.items():
        css = css.replace(f"var(--{name})", value)
    head, body = sheet.xml().split(">", 1)
    return f'{head} width="{sheet.width}" height="{sheet.height}"><style>{css}</style>{body}\n'


def _renderer() -> Any:
    try:
        import resvg_py
    except ImportError:
        raise InputError(
            "--export writes PNG with resvg-py, which is not installed; "
            "run `pip install 'compact-distill[png]'`, or pass --no-png for CSV and SVG only"
        ) from None
    return resvg_py
