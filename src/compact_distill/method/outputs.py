"""What a pass of the student yields, for the scores and the loss to read.

Shape letters: B problems, K teachers, R branches of a pass, N their tokens one after the other, T tokens of one branch,
P reading points of the belief, A gold-answer tokens, V vocabulary, H query heads, G key heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compact_distill.method.encode import EncodedProblem
from compact_distill.method.packing import BranchRows


@dataclass(frozen=True)
class Reading:
    """What one pass read off some branches, in the pass's order; `arrange` makes a batch of one or several readings.

    Attributes:
        branches: the branches that were read.
        logprob_N: log-probability of each completion token, branch after branch; differentiable.
        belief_N: the lens' l_t after the prompt and after each completion token but eos, branch after branch.
        query_RHD, key_RGD: query and key projections of each branch's pooled state (R branches); no gradient.
        gold_logprob: [A, V] per branch, next-token distributions at the gold tokens; differentiable; or empty.
        probe: per branch, l at its probe points, [P]; or empty.
        rank_N: rank of each completion token among all tokens, 1 for the likeliest; or None.
        local_R: mean over a branch's steps of their mean log-probability in a window of their own; or None.
    """

    branches: Sequence[BranchRows]
    logprob_N: Tensor
    belief_N: Tensor
    query_RHD: Tensor
    key_RGD: Tensor
    gold_logprob: tuple[Tensor, ...] = ()
    probe: tuple[Tensor, ...] = ()
    rank_N: Tensor | None = None
    local_R: Tensor | None = None


@dataclass(frozen=True)
class StudentOutputs:
    """Everything the student's pass yields about B problems with up to K rationales; absent entries are zero.

    Attributes:
        problems: the B problems.
        present_BK: whether the rationale takes part.
        nll_BKT: negative log-likelihood of each completion token, nats, differentiable; zero behind the end.
        length_BK: number of completion tokens.
        belief_BKP: mean log-probability of the gold answer's tokens at each reading point (the prompt's end first).
        point_BKP: whether the point exists.
        thinking_BKP: whether the step that leads to the point is part of a thinking expression.
        query_BKHD, key_BKGD: projections of the state that stands for the path.
        gold_logprob: per problem [K_present, A, V], differentiable; empty where the pass was not asked for them.
        rank_BKT: rank of each completion token among all tokens, from 1; 0 behind the end. None: not asked for.
        local_BK: mean over steps of their mean log-probability, given prompt and a window. None: not asked for.
    """

    problems: Sequence[EncodedProblem]
    present_BK: Tensor
    nll_BKT: Tensor
    length_BK: Tensor
    belief_BKP: Tensor
    point_BKP: Tensor
    thinking_BKP: Tensor
    query_BKHD: Tensor
    key_BKGD: Tensor
    gold_logprob: tuple[Tensor, ...]
    rank_BKT: Tensor | None = None
    local_BK: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, K)."""
        return self.present_BK.shape[0], self.present_BK.shape[1]


def arrange(problems: Sequence[EncodedProblem], readings: Sequence[Reading]) -> StudentOutputs:
    """Arrange what was read in one or several passes over `problems` as tensors over problems and teachers."""
    branches = [branch for reading in readings for branch in reading.branches]
    logprob_N = torch.cat([reading.logprob_N for reading in readings])
    device = logprob_N.device
    size = len(problems), max(len(problem.branches) for problem in problems)
    places = torch.tensor([branch.problem * size[1] + branch.teacher for branch in branches], device=device)
    lengths = torch.tensor([len(branch.branch) for branch in branches], device=device)

    nll_BKT = _pad(-logprob_N, lengths, places, size)
    if readings[0].probe:
        beliefs = [belief for reading in readings for belief in reading.probe]
        points = torch.tensor([len(belief) for belief in beliefs], device=device)
        belief_BKP = _pad(torch.cat(beliefs), points, places, size)
        thinking_BKP = torch.ones_like(belief_BKP, dtype=torch.bool)
    else:
        points = torch.tensor([len(branch.branch.reasoning) + 1 for branch in branches], device=device)
        belief_N = torch.cat([reading.belief_N for reading in readings])
        inside = torch.arange(int(lengths.max()), device=device)[None, :] < points[:, None]
        existing = torch.arange(int(lengths.max()), device=device)[None, :] < lengths[:, None]
        belief_BKP = _pad(belief_N[inside[existing]], points, places, size)
        marks = torch.tensor([m for branch in branches for m in (False, *branch.branch.thinking)], device=device)
        thinking_BKP = _pad(marks, points, places, size)
    ranks, local = _joined([r.rank_N for r in readings]), _joined([r.local_R for r in readings])
    return StudentOutputs(
        problems=problems,
        present_BK=_scatter(torch.ones_like(places, dtype=torch.bool), places, size),
        nll_BKT=nll_BKT,
        length_BK=_scatter(lengths, places, size),
        belief_BKP=belief_BKP,
        point_BKP=_pad(torch.ones(int(points.sum()), dtype=torch.bool, device=device), points, places, size),
        thinking_BKP=thinking_BKP,
        query_BKHD=_scatter(torch.cat([reading.query_RHD for reading in readings]), places, size),
        key_BKGD=_scatter(torch.cat([reading.key_RGD for reading in readings]), places, size),
        gold_logprob=_by_problem(problems, branches, [g for reading in readings for g in reading.gold_logprob]),
        rank_BKT=None if ranks is None else _pad(ranks, lengths, places, size),
        local_BK=None if local is None else _scatter(local, places, size),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def _scatter(values_R: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Put one entry a branch at its (problem, teacher); the rest is zero."""
    flat = values_R.new_zeros(size[0] * size[1], *values_R.shape[1:])
    return flat.index_copy(0, places, values_R).view(*size, *values_R.shape[1:])


def _pad(values_N: Tensor, lengths: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Spread ragged entries, branch after branch, over [B, K, longest]; zero behind the end. Differentiable."""
    longest = int(lengths.max())
    within = torch.arange(longest, device=values_N.device)[None, :]
    target = (places[:, None] * longest + within)[within < lengths[:, None]]
    flat = values_N.new_zeros(size[0] * size[1] * longest).index_copy(0, target, values_N)
    return flat.view(*size, longest)


def _by_problem(
    problems: Sequence[EncodedProblem], branches: Sequence[BranchRows], gold: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    if not gold:
        return ()
    order = sorted(range(len(branches)), key=lambda i: (branches[i].problem, branches[i].teacher))
    grouped: list[list[Tensor]] = [[] for _ in problems]
    for index in order:
        grouped[branches[index].problem].append(gold[index])
    return tuple(torch.stack(group) for group in grouped)
