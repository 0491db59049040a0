"""Scales, labels and escaping of the hand-made drawings."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.report.charts import Line, Mark, interval_chart, line_chart
from compact_distill.report.svg import Sheet, padded, spread, ticks


def test_ticks_are_round_and_inside():
    assert ticks(0, 1, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-3, 17, 4) == [0.0, 5.0, 10.0, 15.0]
    assert ticks(2, 2) == [2]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_any_range_gets_a_few_ticks(low, span, count):
    found = ticks(low, low + span, count)
    assert 1 <= len(found) <= count + 2
    assert all(low - span * 1e-6 <= t <= low + span * (1 + 1e-6) for t in found)


def test_ranges_hold_all_values_and_zero_where_asked():
    low, high = padded([1.0, 3.0, math.nan])
    assert low < 1 < 3 < high
    assert padded([1.0, 3.0], zero=True)[0] == 0.0
    assert padded([math.nan]) == (0.0, 1.0)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_labels_keep_their_distance_order_and_bounds(places):
    moved = spread(places, 12, 0, 200)
    order = sorted(range(len(places)), key=lambda i: places[i])
    assert all(moved[b] - moved[a] >= 12 - 1e-6 for a, b in pairwise(order))
    assert all(-1e-6 <= place <= 200 + 1e-6 for place in moved)


def test_labels_that_do_not_meet_stay_and_those_that_do_part_evenly():
    assert spread([0, 50, 100], 12, 0, 200) == [0, 50, 100]
    assert spread([100, 50, 50], 10, 0, 200) == [100, 45, 55]


def test_places_map_the_range_onto_the_plot_area():
    sheet = Sheet("t")
    sheet.x_range, sheet.y_range = (10.0, 20.0), (0.0, 2.0)
    assert (sheet.x(10), sheet.x(20)) == (sheet.x0, sheet.x1)
    assert (sheet.y(0), sheet.y(2), sheet.y(1)) == (sheet.y0, sheet.y1, (sheet.y0 + sheet.y1) / 2)


def test_lines_break_where_a_value_is_missing():
    sheet = line_chart("t", [1, 2, 3, 4], [Line("a", [1.0, math.nan, 2.0, 3.0])], x_label="x")
    path = next(e for e in sheet.root.iter("path") if e.get("class", "").startswith("line"))
    assert path.get("d").count("M") == 2


def test_hostile_names_are_text_and_nothing_else():
    name = '"><script>alert(1)</script><img onerror=x>'
    for sheet in (
        line_chart(name, [1, 2], [Line(name, [1.0, 2.0])], x_label=name),
        interval_chart(name, [(name, [Mark(name, 0.5, 0.4, 0.6)])], x_label=name),
    ):
        tags = {element.tag.split("}")[-1] for element in ET.fromstring(sheet.xml()).iter()}
        assert tags <= {"svg", "text", "line", "path", "circle"}
        assert "<script" not in sheet.xml()


@pytest.mark.parametrize("count", [0, 1])
def test_charts_of_nothing_and_of_one_point_can_be_drawn(count):
    line_chart("t", [1.0] * count, [Line("a", [2.0] * count)], x_label="x").xml()
    interval_chart("t", [("a", [Mark("m", 1.0)])] * count, x_label="x").xml()
