"""Scales, labels and places of the hand-made drawings, and colours that readers with other eyes can tell apart."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.report.drawing import DARK, LIGHT, SERIES, Sheet, padded, spread, ticks, with_colours


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


# ---- colours

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    x, y, z = np.where((t := xyz / [0.9505, 1.0, 1.089]) > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(a, b):
    dark, light = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(a), linear(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_series_and_verdicts_differ_for_every_kind_of_colour_vision(theme, vision):
    pairs = [*combinations([f"s{i}" for i in range(SERIES)], 2), ("right", "wrong"), ("before", "after")]
    for a, b in pairs:
        distance = np.linalg.norm(lab(VISION[vision] @ linear(theme[a])) - lab(VISION[vision] @ linear(theme[b])))
        assert distance > 12, (a, b, distance)  # 2.3 is just noticeable


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_is_readable_on_both_backgrounds(theme):
    for back in ("bg", "panel"):
        assert contrast(theme["ink"], theme[back]) > 12
        assert contrast(theme["muted"], theme[back]) > 4.5  # WCAG AA


def test_both_themes_name_the_same_colours_and_pictures_hold_no_variables():
    assert LIGHT.keys() == DARK.keys()
    assert (
        with_colours("a{fill:var(--ink);color:rgba(var(--up),.5)}", LIGHT)
        == "a{fill:#1b1d21;color:rgba(0, 114, 178,.5)}"
    )
