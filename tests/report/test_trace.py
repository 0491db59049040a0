"""The trace as arrays, on values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compact_distill.report.trace import arrange_trace, mean_sem


def line(name, epoch, weights, difficulty=None, teachers=("a", "b"), **more):
    return {
        "id": name,
        "epoch": epoch,
        "step": 0,
        "teachers": list(teachers),
        "consensus": [0.5] * len(teachers),
        "adaptability": [1.0] * len(teachers),
        "difficulty": difficulty or [2.0] * len(teachers),
        "weights": weights,
        "statuses": ["ok"] * len(teachers),
        **more,
    }


def test_a_rationale_that_took_no_part_is_nan_everywhere():
    trace = arrange_trace([line("p", 0.0, [1.0, 0.0], difficulty=[2.0, None], consensus=[0.5, None])])
    assert trace.weights_NK[0, 0] == 1.0
    assert math.isnan(trace.weights_NK[0, 1])
    assert math.isnan(trace.scores["adaptability"][0, 1])
    assert trace.present_N.tolist() == [1]
    assert trace.active == [0]


def test_teachers_join_by_name_never_by_position():
    trace = arrange_trace([line("p", 0, [0.3, 0.7]), line("q", 0, [0.6, 0.4], teachers=("b", "c"))], teachers=["c"])
    assert trace.teachers == ("c", "a", "b")
    np.testing.assert_array_equal(trace.weights_NK, [[np.nan, 0.3, 0.7], [0.4, np.nan, 0.6]])


def test_first_and_last_reading_follow_the_order_of_training():
    rows = [
        line("p", 0.0, [0.1, 0.9]),
        line("q", 0.5, [0.2, 0.8]),
        line("q", 1.0, [0.3, 0.7]),
        line("p", 1.5, [0.4, 0.6]),
    ]
    trace = arrange_trace(rows)
    assert trace.ids == ("p", "q")
    assert trace.weights_NK[trace.first, 0].tolist() == [0.1, 0.2]
    assert trace.weights_NK[trace.last, 0].tolist() == [0.4, 0.3]


def test_wins_are_shared_by_equal_weights():
    trace = arrange_trace([line("p", 0, [0.5, 0.5]), line("q", 0, [0.2, 0.8])])
    assert trace.wins_NK.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_entropy_is_ln_2_for_two_equal_weights_and_0_for_one():
    trace = arrange_trace([line("p", 0, [0.5, 0.5]), line("q", 0, [1.0, 0.0], difficulty=[1.0, None])])
    assert trace.entropy_N.tolist() == pytest.approx([math.log(2), 0.0])


def test_points_are_epochs_from_three_on_and_eighths_before():
    long = arrange_trace([line("p", e, [1.0, 0.0]) for e in (0.0, 0.5, 1.0, 2.75)])
    assert [(at, n.tolist()) for at, n in long.bins] == [(1.0, [0, 1]), (2.0, [2]), (3.0, [3])]
    brief = arrange_trace([line("p", e, [1.0, 0.0]) for e in (0.0, 0.12, 0.125, 1.0)])
    assert [(at, n.tolist()) for at, n in brief.bins] == [(0.125, [0, 1]), (0.25, [2]), (1.125, [3])]


def test_scores_of_ones_own_are_read_beside_the_built_in_ones():
    trace = arrange_trace([line("p", 0, [0.5, 0.5], brevity=[3.0, 4.0], note="no score", flags=[True, False])])
    assert list(trace.scores) == ["consensus", "adaptability", "difficulty", "brevity"]


def test_lines_that_are_no_readings_are_left_out():
    bad = [{}, {"id": "p"}, line("p", 0, [0.5]), line("p", 0, ["x", "y"]), line("p", 0, None)]
    assert arrange_trace(bad) is None
    assert len(arrange_trace([*bad, line("q", 0, [0.5, 0.5])]).problem_N) == 1


def test_mean_and_standard_error_skip_nan():
    mean, sem, n = mean_sem(np.array([1.0, 2.0, 3.0, np.nan]))
    assert (mean, n) == (2.0, 3)
    assert sem == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(mean_sem(np.array([np.nan]))[0])
    assert math.isnan(mean_sem(np.array([4.0]))[1])
