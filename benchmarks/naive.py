"""A naive COMPACT step: what a direct translation of the method into transformers does, as the published prototype.

One problem at a time, its K sequences padded to the longest, the prompt read K times, logits of all tokens, all hidden
states, log-softmax over everything. Where a rationale's answer is not the gold one, its reasoning is read again with
the gold answer, as the consistency term asks. Scores, weights and loss are the package's own: it trains on the same
loss, and only the pass differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from compact_distill.config.models import PRESETS, CompatibilityConfig
from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.method.loss import aggregate
from compact_distill.method.outputs import StudentOutputs
from compact_distill.method.scores import Scorer

CONSISTENCY = 0.1
PUBLISHED = PRESETS["paper"]["compatibility"]  # the naive pass has no probes


def pad_rows(rows: list[Any], value: int | bool, device: torch.device) -> Tensor:
    """Rows of different lengths as one tensor, padded at the end."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], device=device)


def naive_outputs(model: Any, problem: EncodedProblem) -> StudentOutputs:
    """Read a problem's K rationales as K padded sequences and arrange what the scores and the loss need."""
    branches = [branch for branch in problem.branches if branch is not None]
    assert len(branches) == len(problem.branches), "the benchmark's problems have all their rationales"
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = next(model.parameters()).device
    p = len(problem.prompt)
    hidden_KTD, logp_KTV = _read(model, [[*problem.prompt, *branch.completion] for branch in branches], device)
    labels_KT = pad_rows([branch.completion for branch in branches], 0, device)
    real_KT = pad_rows([[True] * len(branch) for branch in branches], False, device)
    completion_KTV = logp_KTV[:, p - 1 : -1]
    nll_KT = -completion_KTV.gather(2, labels_KT[..., None])[..., 0] * real_KT

    gold = torch.tensor(problem.gold_tokens, device=device)
    belief_KP = completion_KTV.detach()[..., gold].mean(-1)
    point_KP = pad_rows([[True] * (len(b.reasoning) + 1) + [False] * (len(b.answer)) for b in branches], False, device)
    thinking_KP = pad_rows([[False, *b.thinking, *[False] * len(b.answer)] for b in branches], False, device)
    last = torch.tensor([p + len(branch) - 2 for branch in branches], device=device)
    state_KD = hidden_KTD.detach()[torch.arange(len(branches), device=device), last]
    attention = core.model.layers[-1].self_attn
    with torch.no_grad():
        query_KHD = attention.q_proj(state_KD).view(len(branches), -1, attention.head_dim)
        key_KGD = attention.k_proj(state_KD).view(len(branches), -1, attention.head_dim)
    return StudentOutputs(
        problems=[problem],
        present_BK=torch.ones(1, len(branches), dtype=torch.bool, device=device),
        nll_BKT=nll_KT[None],
        length_BK=torch.tensor([[len(branch) for branch in branches]], device=device),
        belief_BKP=belief_KP[None],
        point_BKP=point_KP[None],
        thinking_BKP=thinking_KP[None],
        query_BKHD=query_KHD[None].float(),
        key_BKGD=key_KGD[None].float(),
        gold_logprob=(_gold_logprobs(model, problem, branches, logp_KTV),),
    )


def _read(model: Any, rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Final hidden states and log-probabilities of all tokens of padded rows, [K, T, D] and [K, T, V]."""
    out = model(
        input_ids=pad_rows(rows, 0, device),
        attention_mask=pad_rows([[1] * len(row) for row in rows], 0, device),
        output_hidden_states=True,
        use_cache=False,
    )
    return out.hidden_states[-1], torch.log_softmax(out.logits.float(), dim=-1)


def _gold_logprobs(model: Any, problem: EncodedProblem, branches: list[Branch], logp_KTV: Tensor) -> Tensor:
    """Distributions that predict the gold answer's tokens after each branch's reasoning, [K, A, V]."""
    wrong = [k for k, branch in enumerate(branches) if branch.answer != problem.gold]
    rows = [[*problem.prompt, *branches[k].reasoning, *problem.gold] for k in wrong]
    again = dict(zip(wrong, _read(model, rows, logp_KTV.device)[1], strict=True)) if wrong else {}
    predicted = []
    for k, branch in enumerate(branches):
        first = len(problem.prompt) + len(branch.reasoning) + problem.gold_start - 1
        predicted.append(again.get(k, logp_KTV[k])[first : first + len(problem.gold_tokens)])
    return torch.stack(predicted)


class NaiveTrainer(Trainer):
    """transformers' Trainer with the naive step; give it batches of one problem and accumulate."""

    scorer = Scorer(CompatibilityConfig(**PUBLISHED))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The package's loss of one problem, from a naive pass."""
        (problem,) = inputs["problems"]
        outputs = naive_outputs(model, problem)
        scores = self.scorer.scores(outputs)
        weights_BK = self.scorer.weights(scores, outputs.problems)
        return aggregate(scores["difficulty"], weights_BK, outputs.gold_logprob, outputs.problems, CONSISTENCY).total
