"""How sure a share is, and a difference of two: intervals and tests over the rows of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000
_DRAWN_AT_ONCE = 2**22


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
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    spread = z * z / attempts
    center = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / attempts + spread / (4 * attempts)) / (1 + spread)
    return Estimate(share, max(0.0, center - half), min(1.0, center + half))


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
