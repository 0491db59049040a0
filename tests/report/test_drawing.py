"""Words and numbers as they are shown; scales, labels and places of drawings, and colours everybody can tell apart."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compact_distill.report.drawing import (
    DARK,
    LIGHT,
    SERIES,
    Sheet,
    clean,
    listed,
    number,
    padded,
    percent,
    points,
    short,
    spread,
    ticks,
)
from compact_distill.report.html import standalone


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


@settings(deadline=None)  # the first call imports scipy
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
    drawing = standalone(Sheet("t"))
    assert "var(" not in drawing
    assert "fill:#1b1d21" in drawing  # ink
    assert "fill:rgba(0, 114, 178,.05)" in drawing  # up


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (-0.0, "0"),
        (1234567.0, "1,234,567"),
        (12.345, "12.3"),
        (0.12345, "0.123"),
        (-0.5, "−0.5"),
        (0.00001, "1e−5"),
        (0.000015, "1.5e−5"),
        (400, "400"),
        (100.0, "100"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_numbers_are_short_and_readable(value, text):
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_a_shown_number_is_within_a_half_percent(value):
    shown = number(value).replace(",", "").replace("−", "-")
    assert float(shown) == pytest.approx(value, rel=0.051 if abs(value) < 1e-3 else 0.005)


def test_shares_and_differences_carry_their_unit_and_sign():
    assert percent(0.4256) == "42.6 %"
    assert points(0.031) == "+3.1"
    assert points(-0.031) == "−3.1"
    assert percent(None) == points(math.nan) == "–"


def test_lists_end_with_and():
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def test_short_texts_stay_and_long_ones_end_in_an_ellipsis():
    assert short("abc", 3) == "abc"
    assert short("abcd", 3) == "ab…"


HOSTILE = "a\x00b\x1b[31mc\u202ed\ud800e\r\nf\rg\th\ni"


def test_clean_text_commands_no_terminal_and_can_be_written():
    text = clean(HOSTILE)
    assert text == "a�b�[31mc�d�e \nf\ng\th\ni"
    text.encode("utf-8")


@given(st.text(alphabet=st.characters(codec=None, categories=None), max_size=50))
def test_cleaning_keeps_every_place_in_the_text(text):
    assert len(clean(text)) == len(text)  # gains point at characters by number
    assert clean(clean(text)) == clean(text)
