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
    difference_of_tables,
    exact_p,
    holm,
    mcnemar,
    over_seeds_and_rows,
    rank_correlation,
    share_of_rows,
    share_of_tables,
    tango,
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


Z2 = 1.959964**2


def slow_tango(gained, lost, rows):
    """All differences, on a grid, that a score test does not refute; the unknown share of lost rows by likelihood."""
    kept = []
    for d in np.linspace(-1, 1, 2001)[1:-1]:
        shares_lost = np.linspace(max(0.0, -d), (1 - d) / 2, 4001)
        counts = ((gained, shares_lost + d), (lost, shares_lost), (rows - gained - lost, 1 - d - 2 * shares_lost))
        with np.errstate(divide="ignore"):
            likelihood = sum(count * np.log(np.maximum(share, 0)) for count, share in counts if count)
        share_lost = shares_lost[np.argmax(likelihood)]
        variance = rows * (2 * share_lost + d - d * d)
        if (gained - lost - rows * d) ** 2 <= Z2 * variance + 1e-12:
            kept.append(d)
    return min(kept), max(kept)


@pytest.mark.parametrize(
    ("gained", "lost", "rows"), [(0, 0, 20), (1, 0, 20), (3, 1, 20), (0, 4, 12), (20, 0, 20), (12, 2, 50), (1, 0, 1)]
)
def test_tangos_interval_is_what_a_search_over_all_differences_leaves(gained, lost, rows):
    found = tango(gained, lost, rows)
    assert found.value == (gained - lost) / rows
    assert (found.low, found.high) == pytest.approx(slow_tango(gained, lost, rows), abs=0.0025)
    mirrored = tango(lost, gained, rows)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_tangos_interval_by_hand():
    # None of 100 differs: z^2 / (100 + z^2) = 3.8415 / 103.8415 to either side, Wilson's limit of a share of 0.
    none = tango(0, 0, 100)
    assert (none.low, none.high) == pytest.approx((-0.036994, 0.036994), abs=1e-6)
    assert none.high == pytest.approx(wilson(0.0, 100).high)
    # All 20 gained: (20 - z^2) / (20 + z^2), since others may also be lost.
    every = tango(20, 0, 20)
    assert (every.low, every.high) == pytest.approx(((20 - Z2) / (20 + Z2), 1.0), abs=1e-6)


def test_tangos_interval_holds_the_truth_where_few_rows_differ():
    chance = np.random.default_rng(2)
    for gained, lost in ((0.01, 0.0), (0.01, 0.01), (0.03, 0.01)):
        draws = chance.multinomial(100, [gained, lost, 1 - gained - lost], 1000)
        found = [tango(int(g), int(n), 100) for g, n, _ in draws]
        inside = np.mean([own.low - 1e-9 <= gained - lost <= own.high + 1e-9 for own in found])
        assert inside >= 0.93, (gained, lost)


def with_rows(value, count, rows=40, seeds=1):
    """A table of zeros but for `count` rows of a value."""
    return np.repeat(np.array([[value] * count + [0.0] * (rows - count)]), seeds, axis=0)


def test_a_difference_of_no_row_is_no_certainty_of_none():
    for seeds in (1, 3):  # that share their rows, which are all that is known of other rows
        found = difference_of_tables([with_rows(0.0, 0, seeds=seeds)])
        assert (found.value, found.low, found.high) == (0.0, *(pytest.approx(s * Z2 / (40 + Z2)) for s in (-1, 1)))
    # Two benchmarks count alike, and the one of 10 rows may hide a share of Z2 / (10 + Z2): half of it in the mean.
    both = difference_of_tables([with_rows(0.0, 0, 10), with_rows(0.0, 0, 1000)])
    assert both.high == pytest.approx(Z2 / (20 + Z2))
    assert both.high >= Z2 / (10 + Z2) / 2


@pytest.mark.parametrize(("seeds", "value"), [(1, 1.0), (1, -1.0), (3, 1.0), (1, 0.25)])
def test_a_row_more_that_differs_does_not_narrow_the_interval_of_few(seeds, value):
    widths = []
    for count in range(5):
        found = difference_of_tables([with_rows(value, count, seeds=seeds)])
        assert found.value == pytest.approx(value * count / 40)
        assert found.low <= found.value <= found.high
        widths.append(found.high - found.low)
    assert widths == sorted(widths)


def test_where_rows_differ_the_interval_is_the_bootstraps():
    table = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=(2, 60))
    assert difference_of_tables([table]) == over_seeds_and_rows([table])
    resampled = bootstrap_mean(table[0], seed=5)
    assert difference_of_tables([table[:1]], resampled) == resampled


def test_seeds_that_differ_keep_their_width_where_rows_are_alike():
    apart = np.repeat([[0.0], [0.0], [1.0]], 50, axis=1)  # one seed of three has gained all rows
    found = difference_of_tables([apart])
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_share_of_all_or_none_or_few_rows_has_wilsons_interval_at_least():
    for right, rows in ((0, 40), (40, 40), (3, 40), (38, 40)):
        found = share_of_tables([with_rows(1.0, right, rows)])
        peer = stats.binomtest(right, rows).proportion_ci(0.95, "wilson")
        assert found.value == right / rows
        assert found.low <= peer.low + 1e-9
        assert found.high >= peer.high - 1e-9
    table = with_rows(1.0, 12)
    assert share_of_tables([table]) == over_seeds_and_rows([table])


def test_a_mean_of_benchmarks_knows_no_more_than_the_smallest_of_them():
    # None of 10 and none of 1,000 right: the small one may hide a share of z^2 / (10 + z^2), half of it in the mean.
    found = share_of_tables([with_rows(0.0, 0, 10), with_rows(0.0, 0, 1000)])
    assert found.high == pytest.approx(Z2 / (20 + Z2))
    # Of benchmarks of one size all rows count.
    assert share_of_tables([with_rows(0.0, 0, 30)] * 2).high == pytest.approx(Z2 / (60 + Z2))


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


@given(st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=1, max_size=8), st.sampled_from([3, 7]))
@settings(max_examples=40, deadline=None)
def test_the_exact_test_ties_what_is_equal_also_of_shares_that_have_no_end_in_decimals(rows, samples):
    table = np.array(rows, dtype=float).T / samples
    sums = [sum(row) for row in rows]
    flips = [
        abs(sum(sign * own for sign, own in zip(signs, sums, strict=True))) >= abs(sum(sums))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    assert exact_p([table]) == pytest.approx(np.mean(flips), abs=1e-12)


@given(
    st.lists(st.tuples(*[st.integers(-1, 1)] * 2), min_size=4, max_size=4),
    st.lists(st.tuples(*[st.integers(-1, 1)] * 2), min_size=8, max_size=8),
)
@settings(max_examples=20, deadline=None)
def test_benchmarks_count_alike_in_the_exact_test_however_many_rows_they_have(few, many):
    tables = [np.array(rows, dtype=float).T for rows in (few, many)]
    means = np.concatenate([table.sum(axis=0) / table.shape[1] for table in tables])
    flips = [abs(np.dot(signs, means)) >= abs(means.sum()) - 1e-9 for signs in itertools.product((1, -1), repeat=12)]
    assert exact_p(tables) == pytest.approx(np.mean(flips), abs=1e-12)


def test_the_exact_test_of_two_benchmarks_by_hand():
    # Means +1/2 and -1/4: the sum of means is 1/4, and of four flips all are as far (3/4, 1/4, -1/4, -3/4).
    one, other = np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0, 0.0, 0.0]])
    assert exact_p([one, other]) == 1.0
    # +1/2 and +1/4: 3/4 and -3/4 of four are.
    assert exact_p([one, -other]) == 0.5


def test_many_small_gains_of_a_large_benchmark_do_not_outvote_a_small_one_in_p_alone():
    large, small = np.zeros((1, 1000)), np.zeros((1, 44))
    large[0, :40], small[0, :6] = 1.0, -1.0
    found = over_seeds_and_rows([large, small])
    assert found.value < 0
    assert 0.01 < exact_p([large, small]) < 0.2
    assert exact_p([large, -small]) < 1e-3
    assert exact_p([large]) == pytest.approx(mcnemar(40, 0))


def test_uneven_sizes_weigh_as_a_draw_of_signs_does():
    random = np.random.default_rng(0)
    tables = [random.choice([-1.0, 0.0, 0.0, 1.0], size=(3, rows)) for rows in (37, 101, 400)]
    tables[0] += random.choice([0.0, 1.0], size=(3, 37))
    sums = np.concatenate([table.sum(axis=0) / table.shape[1] for table in tables])
    drawn = random.choice([-1.0, 1.0], size=(40_000, len(sums))) @ sums
    assert exact_p(tables) == pytest.approx(np.mean(np.abs(drawn) >= abs(sums.sum()) - 1e-9), abs=0.01)


def test_the_exact_test_refuses_what_are_no_shares_of_samples():
    with pytest.raises(ValueError, match=r"shares of at most 1,000 samples, got \[0.1234567"):
        exact_p([np.array([[0.1234567, 0.5]])])


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
