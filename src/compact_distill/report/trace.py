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

from compact_distill.report.text import clean

Floats = NDArray[np.float64]
BUILT_IN = ("consensus", "adaptability", "difficulty")
_NOT_SCORES = {"epoch", "step", "id", "teachers", "statuses", "weights"}
# A run of fewer epochs is cut in eighths, so that its curves have more than a point or two.
_WHOLE_EPOCHS_FROM = 3
_PARTS = 8


@dataclass(frozen=True)
class Trace:
    """All readings of a run, in the order of training.

    Attributes:
        teachers: the K names.
        ids: of the problems, in the order of their first reading.
        problem_N: index into `ids`.
        epoch_N: epochs that were done when the problem was read.
        weights_NK: alpha.
        scores: [N, K] by name, the three built-in ones first.
    """

    teachers: tuple[str, ...]
    ids: tuple[str, ...]
    problem_N: NDArray[np.int64]
    epoch_N: Floats
    weights_NK: Floats
    scores: dict[str, Floats]

    @property
    def epochs(self) -> int:
        """How many epochs were begun."""
        return math.floor(self.epoch_N.max() + 1e-9) + 1

    @property
    def bin_width(self) -> float:
        """Epochs that one point of a curve stands for: 1, or an eighth in a run of fewer than three epochs."""
        return 1.0 if self.epochs >= _WHOLE_EPOCHS_FROM else 1 / _PARTS

    @cached_property
    def active(self) -> list[int]:
        """Teachers with at least one rationale that took part."""
        return np.flatnonzero((~np.isnan(self.weights_NK)).any(0)).tolist()

    @cached_property
    def bins(self) -> list[tuple[float, NDArray[np.int64]]]:
        """Points of a curve: epochs done at the point's end, and the readings it stands for."""
        bin_N = np.floor(self.epoch_N / self.bin_width + 1e-9)
        return [((b + 1) * self.bin_width, np.flatnonzero(bin_N == b)) for b in np.unique(bin_N)]

    @cached_property
    def last(self) -> NDArray[np.int64]:
        """Each problem's last reading, in the order of `ids`."""
        found = np.zeros(len(self.ids), dtype=np.int64)
        found[self.problem_N] = np.arange(len(self.problem_N))  # a later one replaces an earlier one
        return found

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """Each problem's first reading, in the order of `ids`."""
        found = np.zeros(len(self.ids), dtype=np.int64)
        found[self.problem_N[::-1]] = np.arange(len(self.problem_N))[::-1]
        return found

    @cached_property
    def wins_NK(self) -> Floats:
        """1 for the largest weight of a reading, shared where several are largest; NaN where absent."""
        present = ~np.isnan(self.weights_NK)
        top = self.weights_NK == _largest(self.weights_NK)[:, None]
        return np.where(present, top / np.maximum(top.sum(1, keepdims=True), 1), np.nan)

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
        readings.append((ids.setdefault(clean(row["id"]), len(ids)), float(row.get("epoch", 0.0)), own, values))
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


def _largest(values_NK: Floats) -> Floats:
    return np.where(np.isnan(values_NK), -np.inf, values_NK).max(1)


def mean_sem(values: Floats) -> tuple[float, float, int]:
    """Mean, its standard error and the count of the values that are not NaN; NaN where there are too few."""
    kept = values[~np.isnan(values)]
    n = len(kept)
    return (
        float(kept.mean()) if n else math.nan,
        float(kept.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        n,
    )
