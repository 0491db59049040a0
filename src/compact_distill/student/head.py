"""The LM head for the tokens that have a label, in chunks, so that no [T, V] logits ever exist at once.

Two things are read from the same logits: the log-probability of the label (differentiable, unreduced: its weight is
known only later), and the mean log-probability of the gold answer's tokens (the lens; not differentiable).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows of a chunk: enough for a fast matmul, few enough for its logits to stay near the processor.
CHUNK_ROWS = 256
# What the backward needs of the chunks is kept up to this many numbers a pass (128 MiB in fp32), and computed again
# beyond it.
KEEP_NUMBERS = 2**25


class _LabelLogProbs(torch.autograd.Function):
    """log softmax(h W^T + b)[label] for each row, and the lens; the backward is written out by hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, gold_NA: Tensor
    ) -> tuple[Tensor, Tensor]:
        keep = any(ctx.needs_input_grad) and len(hidden_ND) * len(weight_VD) <= KEEP_NUMBERS
        logprobs, beliefs, tops, sums, kept = [], [], [], [], []
        for part in _chunks(len(hidden_ND)):
            logits_NV = _logits(hidden_ND[part], weight_VD, bias_V)
            label_N1, gold = logits_NV.gather(1, labels_N[part, None]), logits_NV.gather(1, gold_NA[part].clamp_min(0))
            top_N1 = logits_NV.amax(-1, keepdim=True)
            exp_NV = logits_NV.sub_(top_N1).exp_()  # logits are 0 at most, so nothing overflows
            sum_N1 = exp_NV.sum(-1, keepdim=True)
            norm_N1 = top_N1 + sum_N1.log()
            present = gold_NA[part] >= 0
            logprobs.append(label_N1 - norm_N1)
            beliefs.append(((gold - norm_N1) * present).sum(-1) / present.sum(-1).clamp_min(1))
            tops.append(top_N1)
            sums.append(sum_N1)
            if keep:
                kept.append(exp_NV.to(hidden_ND.dtype))
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, torch.cat(tops), torch.cat(sums), *kept)
        belief_N = torch.cat(beliefs)
        ctx.mark_non_differentiable(belief_N)
        return torch.cat(logprobs)[:, 0], belief_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_N = grads[0]
        hidden_ND, weight_VD, bias_V, labels_N, top_N1, sum_N1, *kept = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD) if wants_weight else None
        grad_bias = torch.zeros_like(bias_V) if wants_bias and bias_V is not None else None
        for index, part in enumerate(_chunks(len(hidden_ND))):
            if kept:
                exp_NV = kept[index]
            else:
                exp_NV = _logits(hidden_ND[part], weight_VD, bias_V).sub_(top_N1[part]).exp_().to(hidden_ND.dtype)
            # d logp / d logits = onehot(label) - softmax(logits), times the gradient of the row
            scale_N1 = -grad_N[part, None] / sum_N1[part]
            grad_NV = exp_NV * scale_N1
            grad_NV = grad_NV.scatter_add_(1, labels_N[part, None], grad_N[part, None]).to(hidden_ND.dtype)
            if grad_hidden is not None:
                torch.mm(grad_NV, weight_VD, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.addmm_(grad_NV.t(), hidden_ND[part])
            if grad_bias is not None:
                grad_bias += grad_NV.sum(0)
        return grad_hidden, grad_weight, grad_bias, None, None


def _chunks(rows: int) -> list[slice]:
    return [slice(start, start + CHUNK_ROWS) for start in range(0, rows, CHUNK_ROWS)]


def _logits(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Logits of a chunk, [N, V], fp32 or fp64."""
    logits_NV = hidden_ND @ weight_VD.t()
    if bias_V is not None:
        logits_NV = logits_NV.add_(bias_V)
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


def label_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, gold_NA: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's label, and the lens' belief in the gold answer after each row.

    Args:
        hidden_ND: final hidden states that predict the labels.
        weight_VD: the LM head's weight; bias_V its bias or None.
        labels_N: token ids.
        gold_NA: gold-answer tokens of the row's problem, padded with -1.

    Returns:
        (log-probabilities [N] in nats, fp32 or fp64, differentiable; mean over gold tokens of
        log softmax(W h)[g], [N] in nats, not differentiable).
    """
    if torch.is_autocast_enabled(hidden_ND.device.type):
        dtype = torch.get_autocast_dtype(hidden_ND.device.type)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        bias_V = bias_V if bias_V is None else bias_V.to(dtype)
    logprob_N, belief_N = _LabelLogProbs.apply(hidden_ND, weight_VD, bias_V, labels_N, gold_NA)
    return logprob_N, belief_N


def log_softmax_rows(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Whole next-token distributions log softmax(W h) for a few rows, [N, V] in nats, fp32 or fp64, differentiable."""
    full = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
    return torch.log_softmax(torch.nn.functional.linear(hidden_ND, weight_VD, bias_V).to(full), dim=-1)
