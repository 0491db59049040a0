"""The trace of scores and weights as arrays.

Shapes: N readings of a problem (one per problem and epoch), K teachers. NaN where a rationale took no part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compact_distill import statistics
from compact_distill.report.drawing import clean

Floats = NDArray[np.float64]
BUILT_IN = ("consensus", "adaptability", "difficulty")
_NOT_SCORES = {"epoch", "step", "id", "teachers", "statuses", "weights"}
# A run of fewer epochs is cut in eighths, so that its curves have more than a point or two.
_WHOLE_EPOCHS_FROM = 3
_PARTS = 8
_RESAMPLES = 400


@dataclass(frozen=True)
class Trace:
    """All readings of a run, in the order of training."""

    teachers: tuple[str, ...]
    ids: tuple[str, ...]  # of the problems, in the order of their first reading
    problem_N: NDArray[np.int64]  # index into `ids`
    epoch_N: Floats  # epochs that were done when the problem was read
    weights_NK: Floats
    scores: dict[str, Floats]  # [N, K] by name, the three built-in ones first

    @cached_property
    def active(self) -> list[int]:
        """Teachers with at least one rationale that took part."""
        return np.flatnonzero((~np.isnan(self.weights_NK)).any(0)).tolist()

    @cached_property
    def trained_PK(self) -> NDArray[np.bool_]:
        """Whether each problem's rationale had weight in some reading; a rule may leave out what is there."""
        found_PK = np.zeros((len(self.ids), len(self.teachers)), dtype=bool)
        np.logical_or.at(found_PK, self.problem_N, self.weights_NK > 0)
        return found_PK

    @cached_property
    def bins(self) -> list[tuple[float, NDArray[np.int64]]]:
        """Points of a curve: epochs done at the point's end, and the readings it stands for."""
        begun = math.floor(self.epoch_N.max() + 1e-9) + 1
        width = 1.0 if begun >= _WHOLE_EPOCHS_FROM else 1 / _PARTS
        bin_N = np.floor(self.epoch_N / width + 1e-9)
        return [((b + 1) * width, np.flatnonzero(bin_N == b)) for b in np.unique(bin_N)]

    @cached_property
    def last(self) -> NDArray[np.int64]:
        """Each problem's last reading, in the order of `ids`."""
        return len(self.problem_N) - 1 - np.unique(self.problem_N[::-1], return_index=True)[1]

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """Each problem's first reading, in the order of `ids`."""
        return np.unique(self.problem_N, return_index=True)[1]

    @cached_property
    def wins_NK(self) -> Floats:
        """1 for the largest weight of a reading, shared where several are largest; NaN where absent."""
        absent = np.isnan(self.weights_NK)
        top = self.weights_NK == np.where(absent, -np.inf, self.weights_NK).max(1, keepdims=True)
        return np.where(absent, np.nan, top / np.maximum(top.sum(1, keepdims=True), 1))

    @cached_property
    def entropy_N(self) -> Floats:
        """Entropy of the weights of each reading, nats."""
        alpha = np.nan_to_num(self.weights_NK)
        return -np.sum(alpha * np.log(np.where(alpha > 0, alpha, 1.0)), axis=1)

    @cached_property
    def present_N(self) -> NDArray[np.int64]:
        """How many rationales took part in each reading."""
        return (~np.isnan(self.weights_NK)).sum(1)


def arrange_trace(rows: Iterable[dict[str, Any]], teachers: Iterable[str] = ()) -> Trace | None:
    """Arrange the lines of scores.jsonl; None where no line has an id, teachers and weights.

    `teachers` are names that come first; others follow in the order in which they appear.
    """
    ids: dict[str, int] = {}
    places = {name: k for k, name in enumerate(teachers)}
    readings: list[tuple[int, float, list[int], dict[str, list[float]]]] = []
    for row in rows:
        values = _values(row)
        if values is None:
            continue
        own = [places.setdefault(clean(name), len(places)) for name in row["teachers"]]
        epoch = row.get("epoch")
        epoch = float(epoch) if isinstance(epoch, int | float) and math.isfinite(epoch) else 0.0
        readings.append((ids.setdefault(clean(row["id"]), len(ids)), epoch, own, values))
    if not readings:
        return None
    names = [name for name in BUILT_IN if any(name in values for *_, values in readings)]
    names += sorted({name for *_, values in readings for name in values} - {*names, "weights"})
    columns = {name: np.full((len(readings), len(places)), np.nan) for name in ("weights", *names)}
    for n, (*_, own, values) in enumerate(readings):
        for name, value in values.items():
            columns[name][n, own] = value
    return Trace(
        teachers=tuple(places),
        ids=tuple(ids),
        problem_N=np.array([problem for problem, *_ in readings]),
        epoch_N=np.array([epoch for _, epoch, *_ in readings]),
        weights_NK=columns.pop("weights"),
        scores=columns,
    )


def _values(row: dict[str, Any]) -> dict[str, list[float]] | None:
    """Weights and scores of a line as floats, NaN where a rationale took no part; None where the line is unusable."""
    teachers, weights = row.get("teachers"), row.get("weights")
    if "id" not in row or not isinstance(teachers, list) or not _is_column(weights, teachers):
        return None
    difficulty = row.get("difficulty")
    read: list[Any] = difficulty if _is_column(difficulty, teachers) else weights  # type: ignore[assignment]
    present = [value is not None for value in read]
    found = {}
    extra = row.get("extra_scores")
    for name, column in {**row, **(extra if isinstance(extra, dict) else {})}.items():
        if name == "weights" or (name not in _NOT_SCORES and _is_column(column, teachers)):
            pairs = zip(column, present, strict=False)
            found[name] = [float(v) if here and v is not None else math.nan for v, here in pairs]
    return found


def _is_column(value: Any, teachers: list[Any]) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(teachers)
        and all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in value)
    )


def mean_sem(values: Floats) -> tuple[float, float, int]:
    """Mean, its standard error and the count of the values that are not NaN; NaN where there are too few."""
    kept = values[~np.isnan(values)]
    n = len(kept)
    return float(kept.mean()) if n else math.nan, float(kept.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan, n


@dataclass(frozen=True)
class Trend:
    """Rank correlation within problems of the weight with a property of rationales, point by point of training."""

    points: list[tuple[float, float, float, float]]  # epochs done, correlation, and its 95 % interval
    change: tuple[
        float, float, float
    ]  # last minus first one, with its 95 % interval; NaN where there is one point only


def weight_trend(trace: Trace, property_PK: Floats) -> Trend | None:
    """How the weight follows a property that rationales keep, such as their length; None where nothing can be ranked.

    Within each reading, weights and properties of the rationales that took part are ranked; the correlation is that of
    the ranks' deviations from their mean, over all readings of a point. Intervals: bootstrap over problems (400
    resamples, seed 0), the same resamples at every point, so that the change is paired.
    """
    sums = np.array([_rank_sums(trace, n, property_PK) for _, n in trace.bins])  # [points, P, 3]
    known = np.flatnonzero((sums[:, :, 1] > 0).any(1) & (sums[:, :, 2] > 0).any(1))
    if not len(known):
        return None
    epochs = [trace.bins[i][0] for i in known]
    problems = len(trace.ids)
    drawn = np.random.default_rng(0).multinomial(problems, np.full(problems, 1 / problems), _RESAMPLES)
    found_X = _correlation(sums[known].sum(1))
    resampled_RX = _correlation(np.einsum("rp,xpc->rxc", drawn.astype(float), sums[known]))
    low_X, high_X = np.nanpercentile(resampled_RX, [2.5, 97.5], axis=0)
    moved_R = resampled_RX[:, -1] - resampled_RX[:, 0]
    low, high = map(float, np.nanpercentile(moved_R, [2.5, 97.5]))
    change = (float(found_X[-1] - found_X[0]), low, high) if len(epochs) > 1 else (math.nan, math.nan, math.nan)
    points = list(zip(epochs, found_X.tolist(), low_X.tolist(), high_X.tolist(), strict=True))
    return Trend(points, change)


def rank_correlation(a_NK: Floats, b_NK: Floats) -> float:
    """Correlation of the ranks within each row, over all rows; NaN where nothing can be ranked."""
    return float(_correlation(_rank_products(a_NK, b_NK).sum(0)))


def _correlation(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / np.sqrt(sums[..., 1] * sums[..., 2]))


def _rank_sums(trace: Trace, readings_N: NDArray[np.int64], property_PK: Floats) -> Floats:
    """[P, 3]: per problem, sums over its readings of the product and the squares of the ranks' deviations."""
    problem_N, sums = trace.problem_N[readings_N], np.zeros((len(trace.ids), 3))
    np.add.at(sums, problem_N, _rank_products(trace.weights_NK[readings_N], property_PK[problem_N]))
    return sums


def _rank_products(a_NK: Floats, b_NK: Floats) -> Floats:
    """[N, 3]: of each row, over the places where both are known, the product and squares of the ranks' deviations."""
    absent = np.isnan(a_NK) | np.isnan(b_NK)
    a, b = (_centred_ranks(np.where(absent, np.nan, values)) for values in (a_NK, b_NK))
    return np.stack([(a * b).sum(1), (a * a).sum(1), (b * b).sum(1)], axis=1)


def _centred_ranks(values_NK: Floats) -> Floats:
    """Ranks within each row minus their mean, equal values sharing a rank; 0 where a value is NaN."""
    below = (values_NK[:, None, :] < values_NK[:, :, None]).sum(2)
    equal = (values_NK[:, None, :] == values_NK[:, :, None]).sum(2)
    ranks = np.where(np.isnan(values_NK), np.nan, below + (equal - 1) / 2)
    count = np.maximum((~np.isnan(ranks)).sum(1, keepdims=True), 1)
    return np.asarray(np.nan_to_num(ranks - np.nansum(ranks, axis=1, keepdims=True) / count))


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation over the places where both are known; NaN where one does not vary."""
    both = ~(np.isnan(a) | np.isnan(b))
    found = statistics.rank_correlation(a[both], b[both])
    return math.nan if found is None else found
