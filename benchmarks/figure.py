"""The figure: bars of time and peak memory a contender, as an SVG written by hand; reads well on light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from tables import MIB, Row, Section

NAMES = {
    "lens": "compact-distill",
    "probe": "compact-distill, probe",
    "naive": "naive COMPACT step",
    "trl-single": "TRL SFT, one by one",
    "trl-padded": "TRL SFT, padded",
    "trl-padded-16": "TRL SFT, padded, 16 rows",
    "trl-packed": "TRL SFT, packed",
    "plain": "transformers SFT",
}
_ROW, _LABEL, _BAR, _GAP = 26, 190, 260, 40
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.ours { fill: #1f6feb } .other { fill: #9aa4b0 } .floor { stroke: #cf222e; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .other { fill: #6e7681 } }
"""


def draw(sections: Sequence[Section]) -> str:
    """The main section as bars; other sections are tables only."""
    rows = [row for section in sections if section.name == "main" for row in section.rows if row.seconds]
    height = 60 + _ROW * len(rows) + 30
    width = _LABEL + 2 * (_BAR + _GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img"><title>Time and memory a problem</title>',
        f"<style>{_STYLE}</style>",
    ]
    for index, row in enumerate(rows):
        parts.append(_text(_LABEL - 10, _middle(index), NAMES[row.contender], anchor="end"))
    parts += _panel("ms a problem", rows, _LABEL, lambda row: row.median * 1e3)
    parts += _panel("peak MiB of a step", rows, _LABEL + _BAR + _GAP, lambda row: row.peak / MIB)
    if rows:
        # All train on the same problems; the floor is that of reading each token once.
        x = _LABEL + _BAR * rows[0].floor / max(row.median for row in rows)
        bottom = 45 + _ROW * len(rows)
        parts.append(f'<line class="floor" x1="{x:.1f}" x2="{x:.1f}" y1="40" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 18, f"FLOP floor {rows[0].floor * 1e3:.0f}", anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def _middle(index: int) -> float:
    return 45 + _ROW * index + _ROW / 2 + 4


def _panel(title: str, rows: Sequence[Row], left: float, value: Callable[[Row], float]) -> list[str]:
    parts = [_text(left, 25, title, style="title")]
    largest = max((value(row) for row in rows), default=1.0)
    for index, row in enumerate(rows):
        length = _BAR * value(row) / largest
        kind = "ours" if row.contender in ("lens", "probe") else "other"
        parts.append(
            f'<rect class="{kind}" x="{left}" y="{49 + _ROW * index}" width="{length:.1f}" height="{_ROW - 8}" rx="2"/>'
        )
        inside = length > 60
        x = left + length + (-6 if inside else 6)
        parts.append(_text(x, _middle(index), f"{value(row):,.0f}", anchor="end" if inside else "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'
