"""Text and numbers as the report shows them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.report.text import clean, listed, number, percent, points, short


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
