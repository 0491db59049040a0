"""Adaptability: how much the student's belief in the gold answer rises while it reads; see docs/definitions.md."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from compact_distill.method.outputs import StudentOutputs


def adaptability(
    outputs: StudentOutputs, gain: Literal["positive", "net", "peak"] = "positive", off_weight: float = 0.1
) -> Tensor:
    """S_k from the belief l at each reading point, [B, K] in nats.

    Rises r_p = max(l_p - l_(p-1), 0) count w_p: 1 where the step to p is part of a thinking expression (always, for
    probes), `off_weight` elsewhere. `positive`: sum of w r; `peak`: largest w r; `net`: l_end - l_0, where weights
    have no meaning.
    """
    belief_BKP = outputs.belief_BKP
    if gain == "net":
        last_BK1 = (outputs.point_BKP.sum(-1, keepdim=True) - 1).clamp_min(0)
        return belief_BKP.gather(-1, last_BK1)[..., 0] - belief_BKP[..., 0]
    exists = outputs.point_BKP[..., 1:]
    rises = torch.where(exists, belief_BKP[..., 1:] - belief_BKP[..., :-1], 0.0).clamp_min(0)
    weighted = torch.where(outputs.thinking_BKP[..., 1:], rises, rises * off_weight)
    if gain == "positive":
        return weighted.sum(-1)
    return weighted.amax(-1) if weighted.shape[-1] else weighted.sum(-1)
