"""Dynamic Weight Generator: scores [B, K] to weights alpha [B, K] (docs/definitions.md, Weights; paper section 3.2).

Sees tensors only. No gradient flows through a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

EPSILON = 1e-4  # in z(x) = (x - mean) / (std + EPSILON)


def standardise(score_BK: Tensor, present_BK: Tensor) -> Tensor:
    """z(x) = (x - mean) / (std + 1e-4) over a problem's present teachers (unbiased std); 0 where absent or single."""
    count_B1 = present_BK.sum(-1, keepdim=True)
    score_BK = torch.where(present_BK, score_BK, 0.0)
    mean_B1 = score_BK.sum(-1, keepdim=True) / count_B1.clamp_min(1)
    centred_BK = torch.where(present_BK, score_BK - mean_B1, 0.0)
    std_B1 = (centred_BK.square().sum(-1, keepdim=True) / (count_B1 - 1).clamp_min(1)).sqrt()
    return centred_BK / (std_B1 + EPSILON)


@dataclass
class RunningStatistics:
    """Count, mean and sum of squared deviations of each score over all problems seen (`normalise: running`).

    They are updated once an optimizer step, so that weights do not depend on how a step is divided.
    """

    moments: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def update(self, score: str, values_N: Tensor) -> None:
        """Take in values of a score (Chan et al.'s parallel update)."""
        if not values_N.numel():
            return
        values = values_N.detach().double()
        added, mean = float(values.numel()), float(values.mean())
        spread = float((values - mean).square().sum())
        count, old, squares = self.moments.get(score, (0.0, 0.0, 0.0))
        total = count + added
        shift = mean - old
        self.moments[score] = (
            total,
            old + shift * added / total,
            squares + spread + shift * shift * count * added / total,
        )

    def standardise(self, score: str, score_BK: Tensor, present_BK: Tensor) -> Tensor:
        """z(x) by the statistics; by problem as long as fewer than two values were seen."""
        count, mean, squares = self.moments.get(score, (0.0, 0.0, 0.0))
        if count < 2:
            return standardise(score_BK, present_BK)
        std = (squares / (count - 1)) ** 0.5
        return torch.where(present_BK, (score_BK - mean) / (std + EPSILON), 0.0)


@torch.no_grad()
def compatibility_weights(
    scores: Mapping[str, Tensor],
    coefficients: Mapping[str, float],
    present_BK: Tensor,
    temperature: float = 1.0,
    running: RunningStatistics | None = None,
) -> Tensor:
    """alpha_k = softmax over the present k of sum over scores s of b_s z(s) / T; 0 for missing teachers.

    Args:
        scores: [B, K] tensors by name.
        coefficients: b_s by name; a coefficient of 0 leaves the score out. Difficulty's is negative (it lowers the
            weight).
        present_BK: which teachers take part.
        temperature: T > 0.
        running: standardise by these statistics instead of over each problem.
    """
    total_BK = torch.zeros_like(present_BK, dtype=next(iter(scores.values())).dtype)
    for name, coefficient in coefficients.items():
        if coefficient:
            standard = standardise if running is None else (lambda s, p, n=name: running.standardise(n, s, p))
            total_BK = total_BK + coefficient * standard(scores[name], present_BK)
    weights_BK = torch.softmax((total_BK / temperature).masked_fill(~present_BK, -torch.inf), dim=-1)
    return torch.where(present_BK, weights_BK, 0.0)
