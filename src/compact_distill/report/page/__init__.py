"""One self-contained HTML file: markup from templates, style and script inline, both bound by their hashes.

The content security policy allows nothing else: no network, no other script, no style attribute. Model text reaches
the page through autoescaped templates, through ElementTree, or packed in base64; explorer.js writes it with
textContent only.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from compact_distill.report.figure import Figure, Key
from compact_distill.report.palette import DARK, LIGHT, css_variables
from compact_distill.report.svg import Sheet
from compact_distill.report.text import number

TABLE_ROWS = 200  # of a figure's table in the page; the CSV has all


def render(template: str, scripts: Sequence[str], **values: Any) -> str:
    """Render a template of this folder with the report's style and the named scripts.

    Args:
        template: file name.
        scripts: file names of the scripts, put together into one.
        values: what the template reads.
    """
    light, dark = (f"color-scheme:{n};{css_variables(c)}" for n, c in (("light", LIGHT), ("dark", DARK)))
    themes = (
        f":root{{{light}}}:root[data-theme=dark]{{{dark}}}"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
    )
    style = themes + read("charts.css") + read("page.css")
    script = "".join(read(name) for name in scripts)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **values)


def read(name: str) -> str:
    """A file of this folder."""
    return (resources.files(__name__) / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__name__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": _svg, "key_svg": _key_svg, "cell": _cell, "rows": rows, "code": _code}
    environment.globals["table_rows"] = TABLE_ROWS
    return environment


def _hash(text: str) -> str:
    """The source expression that allows exactly this text (Content Security Policy, level 2)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _svg(sheet: Sheet) -> Markup:
    return Markup(sheet.xml())


def _code(text: str) -> Markup:
    """Text with what stands between backticks set as code."""
    parts = [
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _key_svg(key: Key) -> Markup:
    """A legend's marker."""
    sheet = Sheet("")
    sheet.root.attrib.update({"viewBox": "0 0 14 14", "class": "key", "aria-hidden": "true"})
    for child in list(sheet.root):
        sheet.root.remove(child)
    for name in ("role", "aria-label"):
        del sheet.root.attrib[name]
    if key.css.startswith("gap"):
        sheet.mark("rect", f"part {key.css}", x=1, y=2, width=12, height=10)
    else:
        sheet.marker(7, 7, key.shape, key.css, size=5)
    return Markup(sheet.xml())


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    return number(float(value), 4) if isinstance(value, int | float) else str(value)


def rows(figures: Sequence[Figure]) -> list[tuple[Figure, int]]:
    """Each figure with its width in sixths of the page, so that every row is full.

    A figure takes a third for each of its drawings; what a row lacks is given to its figures, and a figure that would
    stand alone shares the row before.
    """
    lines: list[list[tuple[Figure, int]]] = []
    for figure in figures:
        wanted = 2 * min(len(figure.sheets), 3)
        if lines and sum(width for _, width in lines[-1]) + wanted <= 6:
            lines[-1].append((figure, wanted))
        else:
            lines.append([(figure, wanted)])
    if len(lines) > 1 and len(lines[-1]) == 1 and lines[-1][0][1] == 2 and len(lines[-2]) == 3:
        lines[-1].insert(0, lines[-2].pop())
    return [(figure, _stretched(line, width)) for line in lines for figure, width in line]


def _stretched(line: Sequence[tuple[Figure, int]], width: int) -> int:
    return width * 6 // sum(w for _, w in line)
