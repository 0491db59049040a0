"""Consensus: how much the other teachers' paths attend to this one (paper section 3.1; docs/definitions.md)."""

from __future__ import annotations

import torch
from torch import Tensor

from compact_distill.method.outputs import StudentOutputs


def consensus(outputs: StudentOutputs) -> Tensor:
    """C_k = sum over i != k of A_ik with A = softmax over j of L, [B, K]; 0 for missing and for single teachers.

    L_ij = sum over heads h of <q_i,h , key_j,g(h)> / sqrt(heads * head_dim), g(h) the key head of query head h.
    """
    query_BKHD, key_BKGD = outputs.query_BKHD, outputs.key_BKGD
    heads, width = query_BKHD.shape[2:]
    key_BKHD = key_BKGD.repeat_interleave(heads // key_BKGD.shape[2], dim=2)
    logits_BKK = torch.einsum("bihd,bjhd->bij", query_BKHD, key_BKHD) / (heads * width) ** 0.5
    present_BK = outputs.present_BK
    # A row of a problem without any teacher is all masked; its softmax is NaN and is replaced below.
    attention_BKK = torch.softmax(logits_BKK.masked_fill(~present_BK[:, None, :], -torch.inf), dim=-1)
    others = present_BK[:, :, None] & present_BK[:, None, :]
    others &= ~torch.eye(len(present_BK[0]), dtype=torch.bool, device=others.device)
    return torch.where(others, attention_BKK, 0.0).sum(1)
