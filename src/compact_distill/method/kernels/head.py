"""The LM head for the tokens that are needed, in chunks, so that no [T, V] logits ever exist at once.

Of most rows two numbers are read: the log-probability of the label (differentiable, unreduced: its weight is known only
later), and the mean log-probability of the gold answer's tokens (the lens; not differentiable). Of a few rows, those
that predict the gold answer, the whole distribution is.

Shape letters: N rows with a label, G rows that predict the gold answer, M both (N first), C rows of a chunk, A
gold-answer tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

# Rows of a chunk: enough for fast matrix products. Its logits are one piece of memory (49,152 words: 48 MiB in fp32).
CHUNK_ROWS = 256
# A trained head keeps this many probabilities a pass for its backward (16 MiB in fp32), and computes the others again.
# A frozen one (LoRA) keeps none: its gradient is known, up to a factor a row, when the logits are.
KEEP_NUMBERS = 2**22


def read_head(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    gold_NA: Tensor,
    rank_N: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each row's label, belief in the gold answer after it, and whole distributions of some rows.

    Args:
        hidden_MD: final hidden states: N that predict labels, then M - N of which all is wanted.
        weight_VD: the LM head's weight; bias_V its bias or None.
        labels_N: token ids.
        gold_NA: gold-answer tokens of the row's problem, padded with -1.
        rank_N: filled, where given, with the label's rank among all tokens: 1 + how many have a larger logit.

    Returns:
        (log-probabilities of the labels [N] in nats, differentiable; mean over gold tokens of log softmax(W h)[g], [N]
        in nats, not differentiable; log softmax(W h) [M - N, V], differentiable), all fp32 or fp64.
    """
    if torch.is_autocast_enabled(hidden_MD.device.type):
        dtype = torch.get_autocast_dtype(hidden_MD.device.type)
        hidden_MD, weight_VD = hidden_MD.to(dtype), weight_VD.to(dtype)
        bias_V = bias_V if bias_V is None else bias_V.to(dtype)
    return cast(tuple[Tensor, Tensor, Tensor], _Head.apply(hidden_MD, weight_VD, bias_V, labels_N, gold_NA, rank_N))


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        gold_NA: Tensor,
        rank_N: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = len(labels_N)
        trained = any(ctx.needs_input_grad[1:3])
        frozen = ctx.needs_input_grad[0] and not trained
        keep = KEEP_NUMBERS // len(weight_VD) if trained else 0
        tops, sums, logprobs, beliefs, kept, slopes = [], [], [], [], [], []
        room = _Room(weight_VD, count)
        for part in _chunks(count):
            keeps = part.stop <= keep
            logits_NV = (_logits if keeps else room.logits)(hidden_MD[part], weight_VD, bias_V)
            labels_N1, gold_CA = labels_N[part, None], gold_NA[part]
            label_N1, of_gold_NA = logits_NV.gather(1, labels_N1), logits_NV.gather(1, gold_CA.clamp_min(0))
            if rank_N is not None:
                rank_N[part] = 1 + (logits_NV > label_N1).sum(-1)
            top_N1 = logits_NV.amax(-1, keepdim=True)
            exp_NV = logits_NV.sub_(top_N1).exp_()  # logits are 0 at most, so nothing overflows
            sum_N1 = exp_NV.sum(-1, keepdim=True)
            norm_N1 = top_N1 + sum_N1.log()
            present = gold_CA >= 0
            beliefs.append(((of_gold_NA - norm_N1) * present).sum(-1) / present.sum(-1).clamp_min(1))
            logprobs.append(label_N1 - norm_N1)
            tops.append(top_N1)
            sums.append(sum_N1)
            if keeps:
                kept.append(exp_NV.to(hidden_MD.dtype))
            elif frozen:
                slopes.append(_slope(exp_NV, sum_N1, logprobs[-1], labels_N1, weight_VD))
        del room
        whole_GV = _logits(hidden_MD[count:], weight_VD, bias_V).log_softmax(-1)
        ctx.kept = kept
        ctx.save_for_backward(
            hidden_MD, weight_VD, bias_V, labels_N, *(torch.cat(c) for c in (tops, sums, logprobs)), whole_GV, *slopes
        )
        belief_N = torch.cat(beliefs)
        ctx.mark_non_differentiable(belief_N)
        ctx.set_materialize_grads(False)
        return torch.cat(logprobs)[:, 0], belief_N, whole_GV

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_N, _, grad_GV = grads
        hidden_MD, weight_VD, bias_V, labels_N, top_N1, sum_N1, logprob_N1, whole_GV, *slopes = ctx.saved_tensors
        kept, ctx.kept = ctx.kept, []  # used up in place; whoever goes backward again has them computed again
        count = len(labels_N)
        into = _Gradients(hidden_MD, weight_VD, bias_V, ctx.needs_input_grad)
        if grad_GV is not None:
            into.add(slice(count, None), grad_GV - whole_GV.exp() * grad_GV.sum(-1, keepdim=True))
        if grad_N is not None and slopes:
            assert into.hidden is not None
            torch.mul(torch.cat(slopes), grad_N[:, None].to(hidden_MD.dtype), out=into.hidden[:count])
        elif grad_N is not None:
            room = _Room(weight_VD, count)
            for index, part in enumerate(_chunks(count)):
                if index < len(kept):
                    exp_NV, kept[index] = kept[index], None
                else:
                    exp_NV = room.logits(hidden_MD[part], weight_VD, bias_V).sub_(top_N1[part]).exp_()
                # d logp / d logits = onehot(label) - softmax(logits), times the gradient of the row. The label's own
                # entry, 1 - p, is what rounding would harm.
                grad_NV = exp_NV.mul_(-grad_N[part, None] / sum_N1[part])
                own_N1 = -torch.expm1(logprob_N1[part]) * grad_N[part, None]
                into.add(part, grad_NV.scatter_(1, labels_N[part, None], own_N1.to(grad_NV.dtype)))
        return into.hidden, into.weight, into.bias, None, None, None


class _Room:
    """Room for the logits of one chunk after the other: fresh memory for each would have to be zeroed by the system."""

    def __init__(self, weight_VD: Tensor, rows: int) -> None:
        self._numbers = min(rows, CHUNK_ROWS) * len(weight_VD)
        self._own: Tensor | None = None
        self._full: Tensor | None = None

    def logits(self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        """Logits of a chunk, [N, V], fp32 or fp64, in the place of the chunk's before."""
        if self._own is None:
            self._own = self._full = hidden_ND.new_empty(self._numbers)
            if hidden_ND.dtype not in (torch.float32, torch.float64):
                self._full = torch.empty_like(self._own, dtype=torch.float32)
        assert self._full is not None
        logits_NV = _product(hidden_ND, weight_VD, self._own)
        if bias_V is not None:
            logits_NV.add_(bias_V)
        if self._full is self._own:
            return logits_NV
        return self._full[: logits_NV.numel()].as_strided(logits_NV.shape, logits_NV.stride()).copy_(logits_NV)


class _Gradients:
    """Gradients of the head's inputs, to which gradients of logits are added chunk by chunk."""

    def __init__(self, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self._inputs = hidden_MD, weight_VD
        self.hidden = torch.zeros_like(hidden_MD) if wanted[0] else None
        self.weight = torch.empty_like(weight_VD) if wanted[1] else None
        self._empty = True
        self.bias = torch.zeros_like(bias_V) if wanted[2] and bias_V is not None else None

    def add(self, part: slice, grad_NV: Tensor) -> None:
        hidden_MD, weight_VD = self._inputs
        grad_NV = grad_NV.to(hidden_MD.dtype)
        if self.hidden is not None:
            torch.mm(grad_NV, weight_VD, out=self.hidden[part])
        if self.weight is not None:
            self.weight.addmm_(grad_NV.t(), hidden_MD[part], beta=0 if self._empty else 1)
            self._empty = False
        if self.bias is not None:
            self.bias += grad_NV.sum(0)


def _slope(exp_NV: Tensor, sum_N1: Tensor, logprob_N1: Tensor, labels_N1: Tensor, weight_VD: Tensor) -> Tensor:
    """d logp / d h = W[label] - sum_v p_v W[v], for a chunk; the label's own share apart, as rounding would harm it."""
    others_ND = exp_NV.scatter_(1, labels_N1, 0.0).to(weight_VD.dtype) @ weight_VD
    own_ND = -torch.expm1(logprob_N1) * weight_VD[labels_N1[:, 0]]
    return (own_ND - others_ND / sum_N1).to(weight_VD.dtype)


def _chunks(rows: int) -> list[slice]:
    return [slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS)]


def _logits(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Logits of a chunk, [N, V], fp32 or fp64."""
    logits_NV = _product(hidden_ND, weight_VD)
    if bias_V is not None:
        logits_NV = logits_NV.add_(bias_V)
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


def _product(hidden_ND: Tensor, weight_VD: Tensor, room: Tensor | None = None) -> Tensor:
    """h W^T, [N, V], in `room` where there is one; on a CPU it lies word by word, [V, N]: a quarter faster."""
    rows, words = len(hidden_ND), len(weight_VD)
    flat = None if room is None else room[: rows * words]
    if hidden_ND.device.type == "cpu":
        return torch.mm(weight_VD, hidden_ND.t(), out=None if flat is None else flat.view(words, rows)).t()
    return torch.mm(hidden_ND, weight_VD.t(), out=None if flat is None else flat.view(rows, words))
