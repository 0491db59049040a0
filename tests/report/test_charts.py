"""The charts: gaps, hostile names, nothing at all, and labels that no line crosses."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest

from compact_distill.report.charts import (
    Line,
    Mark,
    Ridge,
    heat_chart,
    interval_chart,
    line_chart,
    ridge_chart,
    scatter_chart,
    stack_chart,
)
from compact_distill.report.drawing import CHARACTER, NARROW, WIDE


def test_lines_break_where_a_value_is_missing():
    sheet = line_chart("t", [1, 2, 3, 4], [Line("a", [1.0, math.nan, 2.0, 3.0])], x_label="x")(NARROW)
    path = next(e for e in sheet.root.iter("path") if e.get("class", "").startswith("line"))
    assert path.get("d").count("M") == 2


def test_hostile_names_are_text_and_nothing_else():
    name = '"><script>alert(1)</script><img onerror=x>'
    for chart in (
        line_chart(name, [1, 2], [Line(name, [1.0, 2.0])], x_label=name),
        interval_chart(name, [(name, [Mark(name, 0.5, 0.4, 0.6)])], x_label=name),
        scatter_chart(name, [(Mark(name, 1.0, 0.5, 1.5), Mark(name, 2.0, 1.0, 3.0))], x_label=name, y_label=name),
        heat_chart(name, [name], [[0.5]], show=str),
        stack_chart(name, [(name, [(name, 2.0)])], {name: "right"}, x_label=name),
    ):
        tags = {element.tag.split("}")[-1] for element in ET.fromstring(chart(NARROW).xml()).iter()}
        assert tags <= {"svg", "text", "line", "path", "circle", "rect"}
        assert "<script" not in chart(NARROW).xml()


@pytest.mark.parametrize("count", [0, 1])
def test_charts_of_nothing_and_of_one_point_can_be_drawn(count):
    charts = [
        line_chart("t", [1.0] * count, [Line("a", [2.0] * count)], x_label="x"),
        interval_chart("t", [("a", [Mark("m", 1.0)])] * count, x_label="x"),
        scatter_chart("t", [(Mark("a", 1.0, 0.5, 1.5), Mark("a", 2.0, 1.0, 3.0))] * count, x_label="x", y_label="y"),
    ]
    for chart in charts:
        assert ET.fromstring(chart(NARROW).xml()).tag.endswith("svg")
        assert "nan" not in chart(NARROW).xml().lower()


def uprights(sheet):
    """(x, upper y, lower y) of every vertical line."""
    lines = [e for e in sheet.root.iter("line") if e.get("x1") == e.get("x2")]
    return [(float(e.get("x1")), *sorted((float(e.get("y1")), float(e.get("y2"))))) for e in lines]


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize(
    "chart",
    [
        interval_chart(
            "t", [("one", [Mark("m", 1.0, -1.0, 2.0)]), ("two", [Mark("m", 0.5)])], x_label="x", reference=0.0
        ),
        ridge_chart(
            "t",
            [0.0, 1.0, 2.0],
            [Ridge("one", [1, 2], [2, 1], 0.5, 1.5), Ridge("two", [1, 1], [1, 1], 1, 1)],
            x_label="x",
        ),
        stack_chart("t", [("one", [("a", 3.0)]), ("two", [("a", 4.0)])], {"a": "right"}, x_label="x"),
    ],
)
def test_no_vertical_line_crosses_a_rows_label(chart, width):
    sheet = chart(width)
    labels = [e for e in sheet.root.iter("text") if e.get("class") == "row"]
    assert len(labels) == 2
    assert uprights(sheet)
    for label in labels:
        baseline = float(label.get("y"))
        for _, upper, lower in uprights(sheet):
            assert lower <= baseline - 9 or upper >= baseline + 3


def test_a_chart_fills_the_width_it_is_given():
    chart = line_chart("t", [1, 2], [Line("a", [1.0, 2.0])], x_label="x", labels=False)
    for width in (NARROW, WIDE):
        path = next(e.get("d") for e in chart(width).root.iter("path") if "line" in e.get("class"))
        start, end = (float(x) for x in re.findall(r"[ML]([\d.]+)", path))
        assert end - start > 0.8 * width


def test_cells_without_a_value_are_left_out_and_the_largest_has_the_fullest_colour():
    sheet = heat_chart("t", ["a", "b"], [[2.0, -1.0], [math.nan, -0.1]], show=str, most=2.0)(NARROW)
    cells = [e.get("class") for e in sheet.root.iter("rect")]
    assert cells == ["cell u4", "cell d2", "cell u0"]


def test_names_of_points_that_lie_close_do_not_overlap():
    places = [(f"arm number {i}", 0.9 + 0.001 * i, 0.5) for i in range(6)] + [("far", 0.1, 0.9)]
    points = [(Mark(name, x, x, x), Mark(name, y, y, y)) for name, x, y in places]
    root = ET.fromstring(scatter_chart("t", points, x_label="x", y_label="y")(NARROW).xml())
    named = {name for name, *_ in places}
    boxes = [
        (float(t.get("x")), float(t.get("x")) + len(t.text) * CHARACTER, float(t.get("y")))
        for t in root.iter("{http://www.w3.org/2000/svg}text")
        if t.text in named
    ]
    assert len(boxes) == 7
    for i, (left, right, y) in enumerate(boxes):
        assert left >= 0
        for other_left, other_right, other_y in boxes[:i]:
            assert right <= other_left or other_right <= left or abs(y - other_y) >= 11
