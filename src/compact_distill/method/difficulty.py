"""Difficulty: how surprised the student is by a rationale (docs/definitions.md, Difficulty; paper section 3.1)."""

from __future__ import annotations

from torch import Tensor

from compact_distill.method.outputs import StudentOutputs


def difficulty(outputs: StudentOutputs) -> Tensor:
    """D_k = mean negative log-likelihood of the completion's tokens, [B, K] in nats per token; differentiable."""
    return outputs.nll_BKT.sum(-1) / outputs.length_BK.clamp_min(1)
