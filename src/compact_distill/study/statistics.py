"""How sure a study can be: intervals over seeds and rows, exact tests of paired rows, Holm's correction, areas.

Every arm and seed answers the same rows. So a table of one arm is [S, N]: S seeds of training, N rows of a benchmark;
a difference of two arms is the difference of their tables.

    S  seeds      N  rows of a benchmark
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compact_distill.evaluation.statistics import LEVEL, Estimate

Table = NDArray[np.float64]
RESAMPLES = 4000
_DRAWN_AT_ONCE = 2**22


def over_seeds_and_rows(tables: Sequence[Table], seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
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
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(np.mean([table.mean() for table in tables])), float(low), float(high))


def exact_p(tables: Sequence[Table]) -> float:
    """Two-sided exact sign-flip test that paired differences are symmetric about 0; rows are the independent units.

    A row's differences are summed over its seeds, since seeds share the row; all 2^rows flips of the rows' signs are
    counted exactly, by convolution. With one seed and right or wrong rows it is the exact test of McNemar (1947).

    Args:
        tables: [S, N] of differences that are multiples of 1/1000 (shares of samples), of each benchmark.

    Raises:
        ValueError: no table, or tables of different seeds.
    """
    _check(tables)
    sums = np.concatenate([table.sum(axis=0) for table in tables])
    whole = np.rint(sums * 1000).astype(np.int64)
    whole //= max(int(np.gcd.reduce(whole)), 1) if whole.any() else 1
    changed = np.abs(whole[whole != 0])
    if not len(changed):
        return 1.0
    reach = int(changed.sum())
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for size in changed:
        moved = np.zeros_like(chances)
        moved[size:] += chances[:-size] / 2
        moved[:-size] += chances[size:] / 2
        chances = moved
    as_far = np.abs(np.arange(-reach, reach + 1)) >= abs(int(whole.sum()))
    return float(min(1.0, chances[as_far].sum()))


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


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
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
