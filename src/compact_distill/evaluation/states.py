"""Read prompts with base and student side by side: last-token states of each layer, and how predictions differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compact_distill.errors import StudentError
from compact_distill.students.generate import plan_batches
from compact_distill.students.load import innermost

Array = NDArray[np.float64]

_LOGITS_AT_ONCE = 2**24


@dataclass(frozen=True)
class Reader:
    """One of the two models, and the context in which it is itself: a PeftModel is its own base without its adapter."""

    model: Any
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def shape(self) -> tuple[int, int, int]:
        """Decoder layers, width of the hidden state, and rows of the vocabulary."""
        config = self.model.config
        return config.num_hidden_layers, config.hidden_size, self.model.get_input_embeddings().num_embeddings

    def __call__(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States of the last token, [layers, N, D], and final hidden states of all tokens, [N, T, D]."""
        inner = innermost(self.model)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with self.context():
            out = inner.base_model(
                input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True, use_cache=False
            )
        return torch.stack([layer[:, -1] for layer in out.hidden_states[1:]]), out.last_hidden_state

    def log_probs(self, hidden_ND: Tensor) -> Tensor:
        """Next-token distributions, [N, V] in nats."""
        with self.context():
            logits_NV = innermost(self.model).get_output_embeddings()(hidden_ND)
        return torch.log_softmax(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float(), dim=-1)


@dataclass(frozen=True)
class Readings:
    """What base and student made of N prompts.

    Attributes:
        base_LND, student_LND: states of the prompt's last token after each of the L decoder layers; the last one stands
            after the final norm. Units of the hidden state.
        kl_last_N: KL(base || student) of the next-token distributions after the last token, nats.
        kl_prompt_N: the same, averaged over all tokens of the prompt.
    """

    base_LND: Array
    student_LND: Array
    kl_last_N: Array
    kl_prompt_N: Array


@torch.no_grad()
def read_both(base: Reader, student: Reader, prompts: Sequence[Sequence[int]], batch_tokens: int) -> Readings:
    """Read prompts (token ids) with both, batched by length; dropout is off meanwhile.

    Raises:
        StudentError: the two do not have the same number of layers, width or vocabulary, or yield no numbers.
    """
    for name, one, other in zip(("layers", "hidden_size", "vocab_size"), base.shape, student.shape, strict=True):
        if one != other:
            raise StudentError(
                f"base and student must have the same {name}, got {one} and {other}; compare two of one kind"
            )
    modes = [(reader.model, reader.model.training) for reader in (base, student)]
    layers, width, _ = base.shape
    states = np.empty((2, layers, len(prompts), width))
    kl_last_N, kl_prompt_N = np.empty(len(prompts)), np.empty(len(prompts))
    try:
        for model, _ in modes:
            model.eval()
        for batch in plan_batches(prompts, 0, batch_tokens):
            ids, mask = _padded([prompts[i] for i in batch], base.model.device)
            hidden = []
            for which, reader in enumerate((base, student)):
                last_LND, hidden_NTD = reader(ids.to(reader.model.device), mask.to(reader.model.device))
                states[which][:, batch] = last_LND.double().cpu().numpy()
                hidden.append(hidden_NTD)
            for place, row in enumerate(batch):
                tokens = len(prompts[row])
                kl_T = _kl(base, student, hidden[0][place, -tokens:], hidden[1][place, -tokens:])
                kl_last_N[row], kl_prompt_N[row] = float(kl_T[-1]), float(kl_T.mean())
    finally:
        for model, training in modes:
            model.train(training)
    for name, numbers in (
        ("base", states[0]),
        ("student", states[1]),
        ("student", kl_last_N),
        ("student", kl_prompt_N),
    ):
        if not np.isfinite(numbers).all():
            raise StudentError(
                f"the {name}'s states and predictions must be numbers, but some are not (NaN or infinite): its weights "
                "are damaged or its training diverged; drift cannot be measured"
            )
    return Readings(states[0], states[1], kl_last_N, kl_prompt_N)


def _kl(base: Reader, student: Reader, base_TD: Tensor, student_TD: Tensor) -> Tensor:
    """KL(base || student) at each token, [T] in nats, fp64; rounding never makes it negative."""
    rows = max(1, _LOGITS_AT_ONCE // base.shape[2])
    parts = []
    for base_part, student_part in zip(base_TD.split(rows), student_TD.split(rows), strict=True):
        base_NV, student_NV = base.log_probs(base_part), student.log_probs(student_part).to(base_part.device)
        parts.append((base_NV.exp() * (base_NV - student_NV)).sum(-1).double().clamp_min(0))
    return torch.cat(parts)


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
