"""The kinds of chart: plain values in, a `Chart` out, which is drawn when the page knows how wide it is to be."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Concatenate, ParamSpec

from compact_distill.report.drawing import CHARACTER, Chart, Sheet, Show, number, padded, series, short, spread, ticks

_MARKERS_UP_TO = 14  # points of a line; more of them would hide it
_LABEL = 15  # most characters of a label at a line's end
_TICKS = 6
_ROW = 20  # most characters of a heat map's row
Given = ParamSpec("Given")


def _chart(draw: Callable[Concatenate[int, Given], Sheet]) -> Callable[Given, Chart]:
    """Turn a function of (width, values) to a sheet into one of the values to a `Chart`."""
    return functools.wraps(draw)(lambda *args, **kwargs: lambda width: draw(width, *args, **kwargs))


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


@_chart
def line_chart(
    width: int,
    title: str,
    xs: Sequence[float],
    lines: Sequence[Line],
    *,
    x_label: str,
    show: Show = number,
    zero: bool = False,
    reference: tuple[float, str] | None = None,
    labels: bool = True,
) -> Sheet:
    """Lines with bands over a common x; each is named at its end. `reference` is a dotted level with a name.

    Where x are few whole numbers, such as epochs, those are the axis' ticks.
    """
    drawn = [line for line in lines if any(map(math.isfinite, line.y))]
    names = [line.name for line in drawn] + ([reference[1]] if reference else [])
    longest = max((min(len(name), _LABEL) for name in names), default=0)
    heights = [v for line in drawn for v in (*line.y, *line.low, *line.high)] + ([reference[0]] if reference else [])
    y_range = padded(heights, zero=zero)
    right = 14 + (round(longest * CHARACTER) + 8 if labels else 0)
    sheet = Sheet(title, width=width, left=_left_of(y_range, show), right=right)
    sheet.y_range = y_range
    sheet.x_range = (min(xs), max(xs)) if len(xs) > 1 else (xs[0] - 0.5, xs[0] + 0.5) if xs else (0.0, 1.0)
    sheet.y_axis(show=show)
    sheet.x_axis(x_label, at=xs if len(xs) <= _TICKS and all(x == int(x) for x in xs) else ())
    if reference:
        sheet.line([(x, reference[0]) for x in sheet.x_range], "reference")
    for line in drawn:
        if line.low:
            sheet.band(xs, line.low, line.high, line.css or series(line.index))
    for line in drawn:
        css = line.css or series(line.index)
        sheet.line(list(zip(xs, line.y, strict=True)), css)
        if len(xs) <= _MARKERS_UP_TO:
            for i, (x, y) in enumerate(zip(xs, line.y, strict=True)):
                if math.isfinite(y):
                    span = (
                        f" ({show(line.low[i])} to {show(line.high[i])})"
                        if line.low and math.isfinite(line.low[i])
                        else ""
                    )
                    tip = f"{line.name}: {show(y)}{span} · {x_label} {number(x)}"
                    sheet.marker(sheet.x(x), sheet.y(y), line.index, css, tip)
    if labels:
        _name_ends(sheet, drawn, reference)
    elif reference:
        above = sheet.y(reference[0]) - 5
        sheet.text(sheet.x0 + 4, above if above > sheet.y1 + 4 else above + 16, reference[1], "tick halo")
    return sheet


def _name_ends(sheet: Sheet, lines: Sequence[Line], reference: tuple[float, str] | None) -> None:
    named = []
    for line in lines:
        end = next(v for v in reversed(line.y) if math.isfinite(v))
        named.append((sheet.y(end), line.name, f"end {line.css or series(line.index)}"))
    if reference:
        named.append((sheet.y(reference[0]), reference[1], "tick"))
    places = spread([y for y, *_ in named], 13, sheet.y1 + 2, sheet.y0)
    for (_, name, css), place in zip(named, places, strict=True):
        sheet.text(sheet.x1 + 8, place + 4, short(name, _LABEL), css)


@_chart
def interval_chart(
    width: int,
    title: str,
    rows: Sequence[tuple[str, Sequence[Mark]]],
    *,
    x_label: str,
    show: Show = number,
    reference: float | None = None,
    x_range: tuple[float, float] | None = None,
    joined: bool = False,
) -> Sheet:
    """Rows of points with intervals; `joined` joins a row's first point to its last."""
    tops = list(itertools.accumulate((28 + 11 * max(len(marks), 1) for _, marks in rows), initial=34))
    sheet = Sheet(title, width=width, height=tops[-1] + 44, left=8, right=12)
    values = [v for _, marks in rows for mark in marks for v in (mark.value, mark.low, mark.high)]
    sheet.x_range = x_range or padded([*values, *([] if reference is None else [reference])])
    # Lines stop at the rows' labels, so that none crosses a word.
    spans = [(top + 21, bottom) for top, bottom in itertools.pairwise(tops)]
    sheet.x_axis(x_label, show=show, grid=spans)
    if reference is not None:
        sheet.upright(reference, "zero", spans)
    for top, (label, marks) in zip(tops, rows, strict=False):
        sheet.text(sheet.x0, top + 14, short(label, width // 7), "row")
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


@_chart
def scatter_chart(
    width: int,
    title: str,
    points: Sequence[tuple[Mark, Mark]],
    *,
    x_label: str,
    y_label: str,
    show: Show = number,
) -> Sheet:
    """Named points in a plane, each a mark along x, which gives it its look, and one along y; y is named on top."""
    y_range = padded([v for _, y in points for v in (y.value, y.low, y.high)])
    sheet = Sheet(f"{title} (up: {y_label})", width=width, height=300, left=_left_of(y_range, show))
    sheet.x_range, sheet.y_range = (
        padded([v for x, _ in points for v in (x.value, x.low, x.high)], margin=0.14),
        y_range,
    )
    sheet.y_axis(show=show)
    sheet.x_axis(x_label, show=show, grid=[(sheet.y0, sheet.y1)])
    for one, two in points:
        x, y, tip = sheet.x(one.value), sheet.y(two.value), f"{one.name}: {show(one.value)}, {show(two.value)}"
        whisker = f"whisker {one.css}"
        sheet.mark("line", whisker, tip, x1=sheet.x(one.low), x2=sheet.x(one.high), y1=y, y2=y)
        sheet.mark("line", whisker, tip, x1=x, x2=x, y1=sheet.y(two.low), y2=sheet.y(two.high))
        sheet.marker(x, y, one.shape, one.css, tip)
    _name_points(sheet, [(sheet.x(one.value), sheet.y(two.value), one) for one, two in points])
    return sheet


def _left_of(y_range: tuple[float, float], show: Show) -> int:
    """Pixels that the labels of a y axis need."""
    return round(max(len(show(tick)) for tick in ticks(*y_range)) * CHARACTER) + 12


def _name_points(sheet: Sheet, points: Sequence[tuple[float, float, Mark]]) -> None:
    """Each point's name beside it, at the first of some places where it meets no other name and no other point."""
    taken = [(x - 5, x + 5, y - 5, y + 5) for x, y, _ in points]
    for x, y, mark in points:
        name = short(mark.name, 22)
        wide = len(name) * CHARACTER
        sides = [(8.0, -6.0), (-8.0 - wide, -6.0), (8.0, 14.0), (-8.0 - wide, 14.0)]
        sides += [(side, 13.0 * step) for step in (2, -2, 3, -3, 4, -4, 5, -5, 6, -6) for side in (8.0, -8.0 - wide)]
        places = [(x + dx, x + dx + wide, y + dy - 9, y + dy + 3) for dx, dy in sides]
        inside = [b for b in places if b[0] >= sheet.x0 and b[1] <= sheet.width and b[2] > 18 and b[3] <= sheet.y0]
        inside = inside or places
        free = [b for b in inside if not any(_overlap(b, other) for other in taken)]
        chosen = (free or inside)[0]
        taken.append(chosen)
        sheet.text(chosen[0], chosen[3] - 3, name, f"end halo {mark.css}")


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    """Whether two boxes (left, right, top, bottom) meet."""
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


@dataclass(frozen=True)
class Ridge:
    """A row of two histograms, one above and one below its line, with their medians."""

    label: str
    above: Sequence[float]
    below: Sequence[float]
    median_above: float
    median_below: float
    tip: str = ""


@_chart
def ridge_chart(
    width: int,
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
    sheet = Sheet(title, width=width, height=40 + step * max(len(ridges), 1) + 44, left=8, right=8)
    sheet.x_range = (edges[0], edges[-1])
    sheet.x_axis(x_label, grid=[(40 + step * i + 13, 40 + step * (i + 1)) for i in range(len(ridges))])
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


@_chart
def heat_chart(
    width: int,
    title: str,
    names: Sequence[str],
    cells: Sequence[Sequence[float]],
    *,
    show: Show,
    most: float = 1.0,
) -> Sheet:
    """Coloured cells with their values, a row and a column for each name; the colour is full at `most` and -`most`."""
    left = round(min(max((len(n) for n in names), default=1), _ROW) * CHARACTER) + 10
    wide = min((width - left - 8) / max(len(names), 1), 80)
    tall = min(wide, 40)
    sheet = Sheet(title, width=width, height=round(34 + tall * len(names) + 62), left=left)
    for i, name in enumerate(names):
        y = 36 + tall * i
        sheet.text(left - 8, y + tall / 2 + 4, short(name, _ROW), "tick", "end")
        for j, other in enumerate(names):
            if math.isfinite(value := cells[i][j]):
                where = {"x": left + wide * j + 1, "y": y + 1, "width": wide - 2, "height": tall - 2, "rx": 3}
                level = round(4 * value / most)
                css = f"cell {'u' if level >= 0 else 'd'}{abs(level)}"
                sheet.mark("rect", css, f"{name} and {other}: {show(value)}", **where)
                sheet.text(left + wide * j + wide / 2, y + tall / 2 + 4, show(value), "value", "middle")
    for j, name in enumerate(names):
        turned = sheet.text(0, 0, short(name, 12), "tick", "end")
        place = f"{left + wide * (j + 0.5) + 4:.1f} {36 + tall * len(names) + 12:.1f}"
        turned.set("transform", f"translate({place}) rotate(-35)")
    return sheet


@_chart
def plane_chart(
    width: int,
    title: str,
    base: Sequence[tuple[float, float]],
    student: Sequence[tuple[float, float]],
    ids: Sequence[str],
) -> Sheet:
    """Two clouds in one plane, equal units on both axes, with an arrow between their centroids."""
    sheet = Sheet(title, width=width, height=330, left=12, right=12)
    xs, ys = zip(*base, *student, strict=True)
    (x_low, x_high), (y_low, y_high) = padded(xs), padded(ys)
    # A unit of x must look like a unit of y.
    unit = max((x_high - x_low) / (sheet.x1 - sheet.x0), (y_high - y_low) / (sheet.y0 - sheet.y1))
    wide, tall = unit * (sheet.x1 - sheet.x0) / 2, unit * (sheet.y0 - sheet.y1) / 2
    x_mid, y_mid = (x_low + x_high) / 2, (y_low + y_high) / 2
    sheet.x_range, sheet.y_range = (x_mid - wide, x_mid + wide), (y_mid - tall, y_mid + tall)
    sheet.x_axis("first component", at=ticks(*sheet.x_range, 4), grid=[(sheet.y0, sheet.y1)])
    for value in ticks(*sheet.y_range, 4):
        sheet.mark("line", "grid", x1=sheet.x0, x2=sheet.x1, y1=sheet.y(value), y2=sheet.y(value))
    for (ax, ay), (bx, by) in zip(base, student, strict=True):
        sheet.mark("line", "step", x1=sheet.x(ax), y1=sheet.y(ay), x2=sheet.x(bx), y2=sheet.y(by))
    clouds = (base, "before", 0, "base"), (student, "after", 2, "student")
    for points, css, shape, who in clouds:
        for (x, y), name in zip(points, ids, strict=True):
            sheet.marker(sheet.x(x), sheet.y(y), shape, f"{css} faint", f"{name}, {who}", size=3)
    for points, css, shape, who in clouds:
        x, y = (sum(v) / len(points) for v in zip(*points, strict=True))
        sheet.marker(sheet.x(x), sheet.y(y), shape, f"{css} centroid", f"centroid of the {who}", size=7)
    return sheet


@_chart
def stack_chart(
    width: int,
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    classes: dict[str, str],
    *,
    x_label: str,
) -> Sheet:
    """Rows of bars that are made of parts; `classes` maps a part's name to its colour."""
    step = 38
    sheet = Sheet(title, width=width, height=34 + step * max(len(rows), 1) + 44, left=8, right=14)
    sheet.x_range = (0.0, max((sum(v for _, v in parts) for _, parts in rows), default=0) or 1.0)
    sheet.x_axis(x_label, grid=[(34 + step * r + 17, 34 + step * (r + 1)) for r in range(len(rows))])
    for r, (label, parts) in enumerate(rows):
        y, total = 34 + step * r, 0.0
        sheet.text(sheet.x0, y + 13, short(label, width // 7), "row")
        for name, value in parts:
            if value:
                start, end = sheet.x(total), sheet.x(total + value)
                tip = f"{label}, {name}: {number(value, 6)}"
                where = {"x": start, "y": y + 18, "width": round(max(end - start - 1, 0.5), 1), "height": 13}
                sheet.mark("rect", f"part {classes[name]}", tip, **where)
                total += value
    return sheet
