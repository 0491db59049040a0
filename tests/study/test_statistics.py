"""Statistics of a study: hand values, agreement with scipy, and properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from compact_distill.evaluation.statistics import mcnemar
from compact_distill.study.statistics import area, exact_p, holm, over_seeds_and_rows, rank_correlation


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
