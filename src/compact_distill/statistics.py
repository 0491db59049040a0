"""How sure a result is: intervals, exact tests and areas, over the rows of a benchmark and over a study's seeds.

Every arm and seed of a study answers the same rows. So a table of one arm is [S, N]: S seeds of training, N rows of a
benchmark; a difference of two arms is the difference of their tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST = 5
"""Problems that an interval needs; rows unlike all others that a bootstrap needs, to know that there are such."""
STUDY_RESAMPLES = 4000
"""Of whole tables of seeds and rows."""
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
_DRAWN_AT_ONCE = 2**22
Table = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def share_of_rows(shares: Sequence[float], samples: int = 1) -> Estimate:
    """Mean over rows of each row's share of correct samples (pass@1), with a 95 % Wilson interval.

    Rows are independent, samples of one row are not. The interval is Wilson's (1927) with the effective number of
    attempts n = p (1 - p) / s^2, where s^2 is the variance of the mean over rows (biased; Franco et al. 2019, for
    clustered samples); n lies between the number of rows and that of attempts. With one sample a row it is exactly the
    number of rows, so that this is the plain Wilson interval.

    Args:
        shares: correct samples of each row over all its samples, 0 to 1.
        samples: samples a row.
    """
    values = np.asarray(shares, dtype=np.float64)
    if values.size == 0 or samples < 1 or values.min() < 0 or values.max() > 1:
        raise ValueError(f"needs at least one share in 0..1 and samples >= 1, got {list(shares)[:5]} and {samples}")
    rows, p = values.size, float(values.mean())
    variance = float(values.var()) / rows
    if samples == 1:
        attempts: float = rows
    elif variance > 0:
        attempts = min(p * (1 - p) / variance, rows * samples)
    else:  # rows that are all alike: as informative as can be, unless they are all right or all wrong
        attempts = rows * samples if 0 < p < 1 else rows
    return wilson(p, attempts)


def wilson(share: float, attempts: float) -> Estimate:
    """Wilson's 95 % score interval of a share of `attempts`; it stays in [0, 1] and does not collapse at the ends."""
    spread = _Z * _Z / attempts
    center = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / attempts + spread / (4 * attempts)) / (1 + spread)
    return Estimate(share, max(0.0, center - half), min(1.0, center + half))


def tango(gained: float, lost: float, rows: float) -> Estimate:
    """Tango's 95 % score interval of (gained - lost) / rows (1998, Statistics in Medicine 17:891-908).

    It holds every difference d that the rows do not refute: |gained - lost - rows d| <= z sqrt(rows (2 q + d (1 - d))),
    q being the likeliest share of lost rows if d is true. It is to paired rows what Wilson's is to one share: where no
    row differs it reaches as far to either side as Wilson's of a share of 0, to z^2 / (rows + z^2).
    """
    return Estimate((gained - lost) / rows, _tango_low(gained, lost, rows), -_tango_low(lost, gained, rows))


def _tango_low(gained: float, lost: float, rows: float) -> float:
    refuted, held = -1.0, (gained - lost) / rows
    for _ in range(60):
        d = (refuted + held) / 2
        b = (2 * rows - gained + lost) * d - gained - lost
        share_lost = (math.sqrt(max(b * b + 8 * rows * lost * d * (1 - d), 0.0)) - b) / (4 * rows)
        spread = math.sqrt(max(rows * (2 * share_lost + d * (1 - d)), 0.0))
        if gained - lost - rows * d > _Z * spread:
            refuted = d
        else:
            held = d
    return held


def share_of_tables(tables: Sequence[Table], resampled: Estimate | None = None) -> Estimate:
    """Mean over benchmarks of their shares of right answers: `over_seeds_and_rows`, and where that is blind, Wilson's.

    Where fewer than five rows are unlike all others (all right, or none), the interval is at least Wilson's. That holds
    for whatever lies between 0 and 1, such as areas: nothing there varies more than what is 0 or 1.

    Args:
        tables: [S, N] of each benchmark, shares of right answers.
        resampled: another bootstrap's interval of these tables, in place of that over seeds and rows.
    """
    found = resampled or over_seeds_and_rows(tables)
    if _unlike_others(tables, (0.0, 1.0)) >= FEWEST:
        return found
    return _at_least(found, wilson(found.value, _rows_of_the_mean(tables)))


def difference_of_tables(tables: Sequence[Table], resampled: Estimate | None = None) -> Estimate:
    """Mean over benchmarks of paired differences: `over_seeds_and_rows`, and where that is blind, Tango's.

    Where fewer than five rows are unlike all others (none differs, all were gained, or all lost), the interval is at
    least Tango's: a bootstrap of rows without a difference draws none, whatever other rows would show. That holds for
    whatever lies between -1 and 1, such as correlations.

    Args:
        tables: [S, N] of each benchmark, differences of shares of right answers.
        resampled: as of `share_of_tables`.
    """
    found = resampled or over_seeds_and_rows(tables)
    if _unlike_others(tables, (0.0, 1.0, -1.0)) >= FEWEST:
        return found
    rows = _rows_of_the_mean(tables)
    gained, lost = (
        rows * float(np.mean([np.maximum(sign * table.mean(axis=0), 0).mean() for table in tables])) for sign in (1, -1)
    )
    return _at_least(found, tango(gained, lost, rows))


def bounded_mean(values: Sequence[float], least: float, seed: int) -> Estimate:
    """`bootstrap_mean` of values between `least` (0 or -1) and 1; where that is blind, at least Wilson's or Tango's."""
    mean = share_of_tables if least == 0 else difference_of_tables
    return mean([np.array([values], dtype=np.float64)], bootstrap_mean(values, seed))


def _unlike_others(tables: Sequence[Table], alike: Sequence[float]) -> int:
    """Of how many rows not all cells have the value of `alike` that most rows have."""
    return min(sum(int((~np.isclose(table, value)).any(axis=0).sum()) for table in tables) for value in alike)


def _rows_of_the_mean(tables: Sequence[Table]) -> int:
    """How many rows a mean over benchmarks is worth: it knows each no better than that with the fewest rows."""
    return len(tables) * min(table.shape[1] for table in tables)


def _at_least(found: Estimate, other: Estimate) -> Estimate:
    return Estimate(found.value, min(found.low, other.low), max(found.high, other.high))


def bootstrap_mean(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean of one value a row, with the 95 % percentile interval of a bootstrap over rows (Efron 1979).

    With the differences of two students on the same rows as values, this is the paired bootstrap.
    """
    array = np.asarray(values, dtype=np.float64)
    means = [array[rows].mean(axis=1) for rows in _resampled(array.size, seed, resamples)]
    return _percentiles(float(array.mean()), np.concatenate(means))


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], seed: int, resamples: int = RESAMPLES
) -> Estimate:
    """Sum over sum, such as nats over tokens, with the same interval: rows are drawn, not tokens.

    With two students' differences on the same rows as numerators, this is the paired bootstrap of their ratios.
    """
    over, under = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    ratios = [over[rows].sum(axis=1) / under[rows].sum(axis=1) for rows in _resampled(over.size, seed, resamples)]
    return _percentiles(float(over.sum() / under.sum()), np.concatenate(ratios))


def _resampled(count: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Rows drawn with replacement, [some resamples, count] at a time; the same for the same seed."""
    if count == 0:
        raise ValueError("values must hold at least one row, got none")
    random = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, step):
        yield random.integers(0, count, (min(step, resamples - start), count))


def _percentiles(value: float, resampled: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: p-value of so uneven a split of the rows whose verdict changed (McNemar 1947).

    Under the null hypothesis each changed row is gained or lost with probability 1/2; without changed rows p is 1.
    """
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def over_seeds_and_rows(tables: Sequence[Table], seed: int = 0, resamples: int = STUDY_RESAMPLES) -> Estimate:
    """Mean over benchmarks of their means, with the 95 % percentile interval of a bootstrap over seeds and rows.

    Seeds and rows are crossed: all seeds answer the same rows. Each resample draws seeds, and of each benchmark rows,
    and takes all cells of what was drawn (the pigeonhole bootstrap: Owen 2007, doi 10.1214/07-AOAS122). So a row
    that is hard for every seed widens the interval as it should. With one seed the interval is of the rows alone.

    Args:
        tables: [S, N] of each benchmark; the seeds are the same, in the same order.
        seed: of the resampling.
        resamples: how many.

    Raises:
        ValueError: no table, or tables of different seeds.
    """
    _check(tables)
    random = np.random.default_rng(seed)
    seeds = tables[0].shape[0]
    means = np.zeros(resamples)
    # How often each seed was drawn is all that its rows need to know.
    drawn_RS = random.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    for table_SN in tables:
        rows = table_SN.shape[1]
        step = max(1, _DRAWN_AT_ONCE // (rows * seeds))
        for start in range(0, resamples, step):
            chosen = slice(start, min(start + step, resamples))
            picked_RN = random.integers(0, rows, (chosen.stop - chosen.start, rows))
            means_RS = table_SN[:, picked_RN].mean(axis=2).T
            means[chosen] += (drawn_RS[chosen] * means_RS).sum(axis=1) / len(tables)
    return _percentiles(float(np.mean([table.mean() for table in tables])), means)


def exact_p(tables: Sequence[Table]) -> float:
    """Two-sided exact sign-flip test that paired differences are symmetric about 0; rows are the independent units.

    A row's differences are summed over its seeds, since seeds share the row; all 2^rows flips of the rows' signs are
    counted exactly, by convolution. With one seed and right or wrong rows it is the exact test of McNemar (1947). As in
    the means, benchmarks count alike: a row of N weighs 1 / N (within 1/2,000 of it, so that sums stay whole numbers;
    the test is exact for the weights it takes).

    Args:
        tables: [S, N] of differences of shares of at most 1,000 samples, of each benchmark.

    Raises:
        ValueError: no table, tables of different seeds, or differences of no such shares.
    """
    _check(tables)
    ends = np.cumsum([table.shape[1] for table in tables])[:-1]
    parts = np.split(_whole(np.concatenate([table.sum(axis=0) for table in tables])), ends)
    most = max(table.shape[1] for table in tables)
    weights = [round(1000 * most / table.shape[1]) for table in tables]
    chances, seen = np.ones(1), 0
    for whole, weight in zip(parts, (weight // math.gcd(*weights) for weight in weights), strict=True):
        chances, seen = _sums(chances, _flipped(whole), weight), seen + weight * int(whole.sum())
    reach = len(chances) // 2
    as_far = np.abs(np.arange(-reach, reach + 1)) >= abs(seen)
    return float(min(1.0, chances[as_far].sum()))


def _flipped(whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Chance of each sum of these numbers with random signs, from the least to the greatest sum."""
    chances = np.ones(1)
    for size in np.abs(whole[whole != 0]).tolist():
        chances = _sums(chances, np.array([0.5, 0.5]), 2 * size)
    return chances


def _sums(chances: NDArray[np.float64], steps: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Chances of what adds to a sum with these chances one with those of `steps`, which lie `size` apart."""
    found = np.zeros(len(chances) + size * (len(steps) - 1))
    for number in np.flatnonzero(steps).tolist():
        found[number * size : number * size + len(chances)] += steps[number] * chances
    return found


def _whole(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The smallest whole numbers in these fractions' ratios; thirds stay thirds, since equal sums must tie."""
    exact = [Fraction(value).limit_denominator(1000) for value in values.tolist()]
    if any(abs(float(fraction) - value) > 1e-9 for fraction, value in zip(exact, values.tolist(), strict=True)):
        raise ValueError(f"differences must be of shares of at most 1,000 samples, got {values.tolist()[:5]}")
    unit = math.lcm(*(fraction.denominator for fraction in exact))
    whole = np.array([int(fraction * unit) for fraction in exact], dtype=np.int64)
    return np.asarray(whole // max(int(np.gcd.reduce(whole)), 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number by Holm (1979), in the order given: max over smaller ones of rank * p."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def area(scores: Sequence[float], right: Sequence[bool]) -> float | None:
    """Chance that a right one scores above a wrong one, ties counted half (ROC AUC); None without one of both."""
    from scipy.stats import rankdata

    labels = np.asarray(right, dtype=bool)
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return None
    ranks = rankdata(np.asarray(scores, dtype=np.float64))
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def rank_correlation(first: Sequence[float] | Table, second: Sequence[float] | Table) -> float | None:
    """Spearman's correlation, ties by their mean rank; None for fewer than two values or where one side is constant."""
    from scipy.stats import rankdata

    if len(first) < 2:
        return None
    one, other = (rankdata(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _check(tables: Sequence[Table]) -> None:
    seeds = {table.shape[0] for table in tables}
    if len(seeds) != 1 or 0 in seeds or any(table.shape[1] == 0 for table in tables):
        raise ValueError(f"needs tables of the same seeds with rows, got shapes {[table.shape for table in tables]}")
