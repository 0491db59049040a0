"""Intervals and tests, against values computed by hand or by another route, and against what they promise."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compact_distill.statistics import (
    area,
    bootstrap_mean,
    exact_p,
    holm,
    mcnemar,
    over_seeds_and_rows,
    rank_correlation,
    share_of_rows,
    wilson,
)


def test_wilson_is_the_textbooks_interval():
    # Agresti & Coull (1998): no success in 10 gives (0, 0.278), z^2 / (n + z^2).
    none = wilson(0.0, 10)
    assert none.low == pytest.approx(0, abs=1e-12)
    assert none.high == pytest.approx(1.959964**2 / (10 + 1.959964**2), rel=1e-6)
    for correct, rows in ((1, 3), (62, 100), (1319, 1319)):
        peer = stats.binomtest(correct, rows).proportion_ci(0.95, "wilson")
        ours = share_of_rows([1.0] * correct + [0.0] * (rows - correct))
        assert (ours.low, ours.high) == pytest.approx((peer.low, peer.high), rel=1e-9)


def test_one_row_decides_nothing():
    sure = share_of_rows([1.0])
    assert sure.low == pytest.approx(1 / (1 + 1.959964**2), rel=1e-6)
    assert sure.high == 1


def test_samples_that_always_agree_count_as_one():
    once, often = share_of_rows([1, 0, 0, 1, 1]), share_of_rows([1, 0, 0, 1, 1], samples=8)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_samples_that_never_agree_count_each():
    # Every row right in half of its samples: no variance between rows, so all 10 x 8 attempts count.
    assert share_of_rows([0.5] * 10, samples=8) == wilson(0.5, 80)


def test_the_effective_number_of_attempts_by_hand():
    # Shares 1, 1/2, 0, 1/2: p = 1/2, variance over rows 1/8, of their mean 1/32; n = (1/4) / (1/32) = 8.
    assert share_of_rows([1, 0.5, 0, 0.5], samples=2) == wilson(0.5, 8)


def test_no_more_attempts_count_than_there_were():
    # Shares 1/2, 1/2, 1/2, 1: p = 5/8, variance of the mean 3/256; n = (15/64) / (3/256) = 20, but 8 were made.
    assert share_of_rows([0.5, 0.5, 0.5, 1], samples=2) == wilson(0.625, 8)


def test_rows_that_are_all_right_count_once_each_however_often_they_were_asked():
    assert share_of_rows([1.0] * 5, samples=4) == wilson(1.0, 5)


def test_the_interval_holds_the_truth_in_95_percent_of_clustered_samples():
    chance = random.Random(1)
    inside = 0
    for _ in range(600):
        hardness = [chance.betavariate(1.2, 0.8) for _ in range(80)]
        found = share_of_rows([sum(chance.random() < p for _ in range(4)) / 4 for p in hardness], samples=4)
        inside += found.low <= 0.6 <= found.high
    assert 0.92 <= inside / 600 <= 0.98


def test_the_bootstrap_of_many_rows_is_the_normal_interval():
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=2000, p=[0.1, 0.7, 0.2])
    found = bootstrap_mean(values, seed=1)
    half = 1.959964 * values.std() / math.sqrt(2000)
    assert found.value == values.mean()
    assert found.low == pytest.approx(found.value - half, abs=0.0015)
    assert found.high == pytest.approx(found.value + half, abs=0.0015)


def test_the_bootstrap_is_the_same_for_the_same_seed_whatever_is_drawn_at_once(monkeypatch):
    values = np.random.default_rng(0).normal(size=5)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    whole = bootstrap_mean(values, seed=3)
    monkeypatch.setattr("compact_distill.statistics._DRAWN_AT_ONCE", 64)
    assert bootstrap_mean(values, seed=3) == whole


def test_no_difference_has_no_width():
    found = bootstrap_mean([0.0] * 20, seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_mcnemar_counts_tails_by_hand():
    # 8 gained, 1 lost: 2 * (C(9,0) + C(9,1)) / 2^9 = 20 / 512.
    assert mcnemar(8, 1) == pytest.approx(20 / 512)
    assert mcnemar(1, 8) == mcnemar(8, 1)
    assert mcnemar(5, 5) == 1
    assert mcnemar(0, 0) == 1


@pytest.mark.parametrize("shares", [[], [1.5], [-0.1]])
def test_shares_outside_of_0_and_1_are_refused(shares):
    with pytest.raises(ValueError, match="at least one share"):
        share_of_rows(shares)


def test_the_mean_is_over_benchmarks_of_different_sizes_with_equal_weight():
    found = over_seeds_and_rows([np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([[1.0, 1.0]])])
    assert found.value == pytest.approx((0.25 + 1.0) / 2)


def test_seeds_that_differ_widen_the_interval_of_rows_that_do_not():
    alike = over_seeds_and_rows([np.full((3, 50), 0.5)])
    apart = over_seeds_and_rows([np.repeat([[0.2], [0.5], [0.8]], 50, axis=1)])
    assert alike.low == alike.high == 0.5
    # Three seeds drawn with replacement are all the lowest in 1 of 27 draws, so both ends are reached.
    assert (apart.low, apart.high) == pytest.approx((0.2, 0.8))


def test_rows_that_every_seed_shares_are_not_counted_as_often_as_there_are_seeds():
    random = np.random.default_rng(0)
    row = (random.random(200) < 0.5).astype(float)
    one, three = over_seeds_and_rows([row[None]]), over_seeds_and_rows([np.repeat(row[None], 3, axis=0)])
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.1)


def test_the_interval_of_one_seed_has_the_width_of_theory():
    random = np.random.default_rng(1)
    row = (random.random(400) < 0.3).astype(float)
    found = over_seeds_and_rows([row[None]])
    error = np.sqrt(row.mean() * (1 - row.mean()) / 400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_with_one_seed_the_exact_test_is_mcnemars(gained, lost, same):
    row = np.array([1.0] * gained + [-1.0] * lost + [0.0] * same + [0.0])
    assert exact_p([row[None]]) == pytest.approx(mcnemar(gained, lost), abs=1e-12)


@given(st.lists(st.tuples(*[st.integers(-1, 1)] * 3), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_the_exact_test_counts_every_flip_of_the_rows_signs(rows):
    table = np.array(rows, dtype=float).T
    sums = table.sum(axis=0)
    flips = [
        abs(np.dot(signs, sums)) >= abs(sums.sum()) - 1e-9 for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    assert exact_p([table]) == pytest.approx(np.mean(flips), abs=1e-12)


def test_the_exact_test_agrees_with_scipys_permutation_test_on_shares_of_samples():
    differences = np.array([0.25, 0.5, -0.25, 0.75, 0.5, 0.25, 1.0])
    theirs = stats.permutation_test(
        (differences, np.zeros(7)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert exact_p([differences[None]]) == pytest.approx(theirs.pvalue)


def test_holm_by_hand():
    # Sorted .01, .02, .03, .5: times 4, 3, 2, 1 is .04, .06, .06 (not smaller than the one before), .5.
    found = holm({"a": 0.02, "b": 0.5, "c": 0.01, "d": 0.03})
    assert found == pytest.approx({"a": 0.06, "b": 0.5, "c": 0.04, "d": 0.06})
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_the_area_counts_ties_half_and_needs_both_kinds():
    assert area([0.9, 0.2, 0.2], [True, False, True]) == pytest.approx(0.75)
    assert area([1.0, 2.0], [True, True]) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
@settings(max_examples=40, deadline=None)
def test_rank_correlation_is_scipys(pairs):
    first, second = zip(*pairs, strict=True)
    found = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(first, second).statistic)


def test_tables_of_different_seeds_are_refused():
    with pytest.raises(ValueError, match="same seeds"):
        over_seeds_and_rows([np.zeros((2, 3)), np.zeros((3, 3))])
