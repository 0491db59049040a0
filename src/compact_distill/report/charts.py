"""The report's kinds of chart. Each takes plain values and returns one finished sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compact_distill.report.svg import CHARACTER, WIDTH, Sheet, padded, series, spread, ticks
from compact_distill.report.text import number, short

_MARKERS_UP_TO = 14  # points of a line; more of them would hide it
_LABEL = 15  # most characters of a label at a line's end
Show = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A series of a line chart; `low` and `high` bound its band."""

    name: str
    y: Sequence[float]
    index: int = 0
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    css: str = ""


@dataclass(frozen=True)
class Mark:
    """A point with its interval."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    css: str = "s0"
    shape: int = 0


def line_chart(
    title: str,
    xs: Sequence[float],
    lines: Sequence[Line],
    *,
    x_label: str,
    show: Show = number,
    zero: bool = False,
    reference: tuple[float, str] | None = None,
    labels: bool = True,
    x_ticks: Sequence[float] = (),
) -> Sheet:
    """Lines with bands over a common x; each is named at its end. `reference` is a dotted level with a name."""
    drawn = [line for line in lines if any(map(math.isfinite, line.y))]
    names = [line.name for line in drawn] + ([reference[1]] if reference else [])
    longest = max((min(len(name), _LABEL) for name in names), default=0)
    heights = [v for line in drawn for v in (*line.y, *line.low, *line.high)] + ([reference[0]] if reference else [])
    y_range = padded(heights, zero=zero)
    widest = max(len(show(tick)) for tick in ticks(*y_range, 5))
    sheet = Sheet(
        title, left=round(widest * CHARACTER) + 12, right=14 + (round(longest * CHARACTER) + 8 if labels else 0)
    )
    sheet.y_range = y_range
    sheet.x_range = (min(xs), max(xs)) if len(xs) > 1 else (xs[0] - 0.5, xs[0] + 0.5) if xs else (0.0, 1.0)
    sheet.y_axis(show=show)
    sheet.x_axis(x_label, at=x_ticks)
    if reference:
        sheet.line([(x, reference[0]) for x in sheet.x_range], "reference")
    for line in drawn:
        css = line.css or series(line.index)
        if line.low:
            sheet.band(xs, line.low, line.high, css)
    for line in drawn:
        css = line.css or series(line.index)
        sheet.line(list(zip(xs, line.y, strict=True)), css)
        if len(xs) <= _MARKERS_UP_TO:
            for i, (x, y) in enumerate(zip(xs, line.y, strict=True)):
                if math.isfinite(y):
                    tip = f"{line.name}: {show(y)}{_interval(line, i, show)} · {x_label} {number(x)}"
                    sheet.marker(sheet.x(x), sheet.y(y), line.index, css, tip)
    if labels:
        _name_ends(sheet, drawn, reference)
    elif reference:
        sheet.text(sheet.x0 + 4, sheet.y(reference[0]) - 5, reference[1], "tick")
    return sheet


def _interval(line: Line, i: int, show: Show) -> str:
    if not line.low or not math.isfinite(line.low[i]):
        return ""
    return f" ({show(line.low[i])} to {show(line.high[i])})"


def _name_ends(sheet: Sheet, lines: Sequence[Line], reference: tuple[float, str] | None) -> None:
    named = [
        (
            sheet.y(next(v for v in reversed(line.y) if math.isfinite(v))),
            line.name,
            f"end {line.css or series(line.index)}",
        )
        for line in lines
    ]
    if reference:
        named.append((sheet.y(reference[0]), reference[1], "tick"))
    places = spread([y for y, *_ in named], 13, sheet.y1 + 2, sheet.y0)
    for (_, name, css), place in zip(named, places, strict=True):
        sheet.text(sheet.x1 + 8, place + 4, short(name, _LABEL), css)


def interval_chart(
    title: str,
    rows: Sequence[tuple[str, Sequence[Mark]]],
    *,
    x_label: str,
    show: Show = number,
    reference: float | None = None,
    x_range: tuple[float, float] | None = None,
    joined: bool = False,
) -> Sheet:
    """Rows of points with intervals; `joined` draws an arrow from a row's first point to its last."""
    tops = [34]
    for _, marks in rows:
        tops.append(tops[-1] + 28 + 11 * max(len(marks), 1))
    sheet = Sheet(title, height=tops[-1] + 44, left=8, right=12)
    values = [v for _, marks in rows for mark in marks for v in (mark.value, mark.low, mark.high)]
    sheet.x_range = x_range or padded([*values, *([] if reference is None else [reference])])
    sheet.x_grid()
    sheet.x_axis(x_label, show=show)
    if reference is not None:
        sheet.mark("line", "zero", x1=sheet.x(reference), x2=sheet.x(reference), y1=sheet.y0, y2=sheet.y1)
    for top, (label, marks) in zip(tops, rows, strict=False):
        sheet.text(sheet.x0, top + 14, short(label, 50), "row")
        places = [top + 26 + 11 * m for m in range(len(marks))]
        if joined and len(marks) > 1 and all(math.isfinite(m.value) for m in (marks[0], marks[-1])):
            start, end = (sheet.x(m.value) for m in (marks[0], marks[-1]))
            sheet.mark("line", "join", x1=start, x2=end, y1=places[0], y2=places[-1])
        for mark, y in zip(marks, places, strict=True):
            _draw_mark(sheet, mark, y, label, show)
    return sheet


def _draw_mark(sheet: Sheet, mark: Mark, y: float, label: str, show: Show) -> None:
    if not math.isfinite(mark.value):
        return
    tip = f"{label}, {mark.name}: {show(mark.value)}"
    if math.isfinite(mark.low):
        tip += f" ({show(mark.low)} to {show(mark.high)})"
        sheet.mark("line", f"whisker {mark.css}", tip, x1=sheet.x(mark.low), x2=sheet.x(mark.high), y1=y, y2=y)
    sheet.marker(sheet.x(mark.value), y, mark.shape, mark.css, tip, size=4.5)


@dataclass(frozen=True)
class Ridge:
    """A row of two histograms, one above and one below its line, with their medians."""

    label: str
    above: Sequence[float]
    below: Sequence[float]
    median_above: float
    median_below: float
    tip: str = ""


def ridge_chart(
    title: str,
    edges: Sequence[float],
    ridges: Sequence[Ridge],
    *,
    x_label: str,
    above: str = "right",
    below: str = "wrong",
) -> Sheet:
    """Histograms of two groups, back to back, a row each; `above` and `below` are classes that colour them."""
    step = 58 if any(sum(r.below) for r in ridges) else 44
    sheet = Sheet(title, height=40 + step * max(len(ridges), 1) + 44, left=8, right=8)
    sheet.x_range = (edges[0], edges[-1])
    sheet.x_grid()
    sheet.x_axis(x_label)
    most = max((v for r in ridges for v in (*r.above, *r.below)), default=0) or 1
    for i, ridge in enumerate(ridges):
        middle = 40 + step * i + (36 if step == 58 else 38)
        reach = 20 if step == 58 else 26
        sheet.mark("line", "grid", x1=sheet.x0, x2=sheet.x1, y1=middle, y2=middle)
        for shares, median, css, way in (
            (ridge.above, ridge.median_above, above, -1),
            (ridge.below, ridge.median_below, below, 1),
        ):
            if sum(shares):
                _draw_hill(sheet, edges, [middle + way * reach * s / most for s in shares], middle, css, ridge.tip)
                x = sheet.x(median)
                sheet.mark("line", f"median {css}", x1=x, x2=x, y1=middle, y2=middle + way * (reach * 0.6 + 2))
        sheet.text(sheet.x0, 40 + step * i + 9, short(ridge.label, 34), "row")
    return sheet


def _draw_hill(sheet: Sheet, edges: Sequence[float], tops: Sequence[float], base: float, css: str, tip: str) -> None:
    path = [f"M{sheet.x(edges[0]):g} {base:g}"]
    for i, top in enumerate(tops):
        path.append(f"V{round(top, 1):g}H{sheet.x(edges[i + 1]):g}")
    sheet.mark("path", f"hill {css}", tip, d="".join([*path, f"V{base:g}Z"]))


def heat_chart(
    title: str, names: Sequence[str], cells: Sequence[Sequence[float]], *, show: Show, level: Callable[[float], int]
) -> Sheet:
    """A square table of coloured cells with their values; `level` (-4..4) chooses a cell's colour."""
    size = len(names)
    label = min(max((len(n) for n in names), default=1), 16)
    left = round(label * CHARACTER) + 10
    cell = min((WIDTH - left - 8) / max(size, 1), 54)
    sheet = Sheet(title, height=round(34 + min(cell, 40) * size + 62), left=left)
    tall = min(cell, 40)
    for i, name in enumerate(names):
        y = 36 + tall * i
        sheet.text(left - 8, y + tall / 2 + 4, short(name, 16), "tick", "end")
        x = left + cell * i + cell / 2
        turned = sheet.text(0, 0, short(name, 12), "tick", "end")
        turned.set("transform", f"translate({x + 4:.1f} {36 + tall * size + 12:.1f}) rotate(-35)")
        for j, other in enumerate(names):
            value = cells[i][j]
            if not math.isfinite(value):
                continue
            where = {"x": left + cell * j + 1, "y": y + 1, "width": cell - 2, "height": tall - 2, "rx": 3}
            sheet.mark("rect", f"cell {level_class(level(value))}", f"{name} and {other}: {show(value)}", **where)
            sheet.text(left + cell * j + cell / 2, y + tall / 2 + 4, show(value), "value", "middle")
    return sheet


def level_class(level: int) -> str:
    """Class of a diverging colour: `u1`..`u4` for rises, `d1`..`d4` for falls, `u0` for neither."""
    return f"u{min(level, 4)}" if level >= 0 else f"d{min(-level, 4)}"


def plane_chart(
    title: str, base: Sequence[tuple[float, float]], student: Sequence[tuple[float, float]], ids: Sequence[str]
) -> Sheet:
    """Two clouds in one plane, equal units on both axes, with an arrow between their centroids."""
    sheet = Sheet(title, height=330, left=12, right=12)
    xs, ys = zip(*base, *student, strict=True)
    (x_low, x_high), (y_low, y_high) = padded(xs), padded(ys)
    # A unit of x must look like a unit of y.
    unit = max((x_high - x_low) / (sheet.x1 - sheet.x0), (y_high - y_low) / (sheet.y0 - sheet.y1))
    wide, tall = unit * (sheet.x1 - sheet.x0) / 2, unit * (sheet.y0 - sheet.y1) / 2
    x_mid, y_mid = (x_low + x_high) / 2, (y_low + y_high) / 2
    sheet.x_range, sheet.y_range = (x_mid - wide, x_mid + wide), (y_mid - tall, y_mid + tall)
    sheet.x_grid(4)
    for value in ticks(*sheet.y_range, 4):
        sheet.mark("line", "grid", x1=sheet.x0, x2=sheet.x1, y1=sheet.y(value), y2=sheet.y(value))
    sheet.x_axis("first component", count=4)
    for (ax, ay), (bx, by) in zip(base, student, strict=True):
        sheet.mark("line", "step", x1=sheet.x(ax), y1=sheet.y(ay), x2=sheet.x(bx), y2=sheet.y(by))
    for points, css, shape, who in ((base, "before", 0, "base"), (student, "after", 2, "student")):
        for (x, y), name in zip(points, ids, strict=True):
            sheet.marker(sheet.x(x), sheet.y(y), shape, f"{css} faint", f"{name}, {who}", size=3)
    for points, css, shape, who in ((base, "before", 0, "base"), (student, "after", 2, "student")):
        x, y = (sum(v) / len(points) for v in zip(*points, strict=True))
        sheet.marker(sheet.x(x), sheet.y(y), shape, f"{css} centroid", f"centroid of the {who}", size=7)
    return sheet


def stack_chart(
    title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], classes: dict[str, str], *, x_label: str
) -> Sheet:
    """Rows of bars that are made of parts; `classes` maps a part's name to its colour."""
    step = 38
    sheet = Sheet(title, height=34 + step * max(len(rows), 1) + 44, left=8, right=14)
    sheet.x_range = (0.0, max((sum(v for _, v in parts) for _, parts in rows), default=0) or 1.0)
    sheet.x_grid()
    sheet.x_axis(x_label)
    for r, (label, parts) in enumerate(rows):
        y, total = 34 + step * r, 0.0
        sheet.text(sheet.x0, y + 13, short(label, 50), "row")
        for name, value in parts:
            if value:
                start, end = sheet.x(total), sheet.x(total + value)
                tip = f"{label}, {name}: {number(value, 6)}"
                where = {"x": start, "y": y + 18, "width": round(max(end - start - 1, 0.5), 1), "height": 13}
                sheet.mark("rect", f"part {classes[name]}", tip, **where)
                total += value
    return sheet


def column_chart(title: str, columns: Sequence[tuple[str, float]], *, x_label: str, css: str = "s0") -> Sheet:
    """Counts as columns with their values on top."""
    sheet = Sheet(title, left=12)
    sheet.y_range = (0.0, max((v for _, v in columns), default=0) * 1.1 or 1.0)
    wide = (sheet.x1 - sheet.x0) / max(len(columns), 1)
    sheet.mark("line", "axis", x1=sheet.x0, x2=sheet.x1, y1=sheet.y0, y2=sheet.y0)
    for i, (name, value) in enumerate(columns):
        x, y = sheet.x0 + wide * i, sheet.y(value)
        where = {"x": round(x + wide * 0.15, 1), "y": y, "width": round(wide * 0.7, 1), "height": sheet.y0 - y, "rx": 2}
        sheet.mark("rect", f"part {css}", f"{name}: {number(value, 6)}", **where)
        sheet.text(x + wide / 2, y - 5, number(value, 6), "tick", "middle")
        sheet.text(x + wide / 2, sheet.y0 + 15, name, "tick", "middle")
    sheet.text((sheet.x0 + sheet.x1) / 2, sheet.y0 + 31, x_label, "name", "middle")
    return sheet
