"""What training logs: for each teacher its mean weight, share of wins and mean scores; the weights' entropy; losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from compact_distill.method.encode import EncodedProblem
from compact_distill.method.loss import LossTerms

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingMetrics:
    """Means since the last log line, over problems, accumulation steps and ranks.

    Names: `weight/TEACHER`, `wins/TEACHER` (share of the problems where it has the largest weight; ties are shared),
    `consensus/TEACHER` ..., `weight_entropy` (nats), `loss_likelihood`, `loss_consistency` (before its coefficient).
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def _add(self, name: str, value: float, count: float = 1.0) -> None:
        entry = self._sums[name]
        entry[0] += value
        entry[1] += count

    def add(
        self,
        problems: Sequence[EncodedProblem],
        scores: Mapping[str, Tensor],
        weights_BK: Tensor,
        terms: LossTerms,
    ) -> None:
        """Take in a job's scores [B, K] and weights [B, K] (on the CPU) and its summed loss terms."""
        self._add("loss_likelihood", float(terms.likelihood), len(problems))
        self._add("loss_consistency", float(terms.consistency), len(problems))
        values = {name: score.tolist() for name, score in scores.items()}
        for b, (problem, weights) in enumerate(zip(problems, weights_BK.tolist(), strict=True)):
            present = [weights[k] for k in problem.present]
            best = max(present)
            winners = present.count(best)
            positive = weights_BK[b][weights_BK[b] > 0]
            self._add("weight_entropy", float(-(positive * positive.log()).sum()))
            for k in problem.present:
                teacher = problem.teachers[k]
                self._add(f"weight/{teacher}", weights[k])
                self._add(f"wins/{teacher}", 1 / winners if weights[k] == best else 0.0)
                for name, rows in values.items():
                    self._add(f"{name}/{teacher}", rows[b][k])

    def collect(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all ranks since the last call; starts anew."""
        parts = [dict(self._sums)]
        if accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            parts = gather_object(parts)
        self._sums.clear()
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for part in parts:
            for name, (value, count) in part.items():
                totals[name][0] += value
                totals[name][1] += count
        return {name: value / count for name, (value, count) in totals.items()}
