"""Loss Aggregator: what the pass yielded and the weights, to one loss (docs/definitions.md, Loss; paper section 3.3).

The loss is reduced over teachers and problems here and nowhere else, exactly once; the trainer divides the sum by the
number of problems of its step.

Shape letters: B problems, K teachers, A gold-answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compact_distill.method.encode import EncodedProblem


@dataclass(frozen=True)
class LossTerms:
    """Sums over problems, in nats; divide by the number of problems of the whole optimizer step.

    `total` is differentiable; `likelihood` and `consistency` (before its coefficient) are for the log.
    """

    total: Tensor
    likelihood: Tensor
    consistency: Tensor


def consistency(weights_BK: Tensor, gold_logprob: Sequence[Tensor], problems: Sequence[EncodedProblem]) -> Tensor:
    """Per problem: sum over i < j of alpha_i alpha_j mean over a of KL(p_i,a || p_j,a) + KL(p_j,a || p_i,a), [B].

    Args:
        weights_BK: alpha, of sum 1 (or all 0: then the term is 0).
        gold_logprob: per problem [K_present, A, V] log-distributions at the gold answer's tokens.
        problems: the B problems; tells which teachers are present.
    """
    terms = []
    for weights_K, logprob_KAV, problem in zip(weights_BK, gold_logprob, problems, strict=True):
        alpha = weights_K[list(problem.present)]
        # KL(i||j) + KL(j||i) = sum over V of (p_i - p_j) (log p_i - log p_j). Its weighted sum over all pairs is the
        # weighted covariance of p and log p, as the weights sum to 1: no pairs, and no loss of digits.
        p_KAV = logprob_KAV.exp()
        mean_p_AV = torch.einsum("k,kav->av", alpha, p_KAV)
        mean_logprob_AV = torch.einsum("k,kav->av", alpha, logprob_KAV)
        spread_KA = ((p_KAV - mean_p_AV) * (logprob_KAV - mean_logprob_AV)).sum(-1)
        terms.append((alpha @ spread_KA).mean())
    return torch.stack(terms)


def aggregate(
    difficulty_BK: Tensor,
    weights_BK: Tensor,
    gold_logprob: Sequence[Tensor],
    problems: Sequence[EncodedProblem],
    coefficient: float,
) -> LossTerms:
    """Sum over problems of sum_k alpha_k D_k + lambda * consistency.

    Args:
        difficulty_BK: D, differentiable, nats per token.
        weights_BK: alpha; no gradient flows through it.
        gold_logprob: see `consistency`; not read where `coefficient` is 0.
        problems: the B problems.
        coefficient: lambda.
    """
    weights_BK = weights_BK.detach().to(difficulty_BK.dtype)
    likelihood = (weights_BK * difficulty_BK).sum()
    if not coefficient:
        return LossTerms(likelihood, likelihood.detach(), torch.zeros_like(likelihood))
    with torch.autocast(difficulty_BK.device.type, enabled=False):  # its products would round to half precision
        disagreement = consistency(weights_BK, gold_logprob, problems).sum()
    return LossTerms(likelihood + coefficient * disagreement, likelihood.detach(), disagreement.detach())
