"""What is read together: a batch divided into passes that fit a token budget, and the order of an epoch's problems.

Problems share passes as long as they fit. A problem too long for one pass is read branch by branch (a few branches at
a time where they fit), each pass under an activation checkpoint: the forward keeps only what scores and loss need, and
the backward runs one pass after the other again, with the same dropout. That is two-phase training: score without
keeping activations, then forward and backward branch by branch; memory is the longest pass's, gradients are the same,
and it is one backward for whoever calls it.

Shape letters: none; a pass is a row of tokens, a job the rows of problems whose loss is computed together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset, Sampler

from compact_distill.data.write import nothing_left
from compact_distill.errors import DataError
from compact_distill.method.encode import EncodedProblem
from compact_distill.method.forward import PassOptions, read
from compact_distill.method.outputs import Reading, StudentOutputs, arrange
from compact_distill.method.packing import Layout, lay_out
from compact_distill.method.weights import Rule
from compact_distill.records import AnswerFrom, RationaleStatus


@dataclass(frozen=True)
class Job:
    """Problems whose loss is computed together, and the layouts they are read in: one, or several of one problem."""

    problems: Sequence[EncodedProblem]
    layouts: tuple[Layout, ...]

    @property
    def longest(self) -> int:
        """Tokens of its longest layout."""
        return max(len(layout.tokens) for layout in self.layouts)


# A CPU is as fast with rows of this many tokens as with longer ones, which only take more memory.
_CPU_FILL = 1024


def plan_jobs(
    problems: Sequence[EncodedProblem], options: PassOptions, max_tokens: int, device: torch.device | None = None
) -> list[Job]:
    """Divide problems, in order, into jobs whose layouts hold at most `max_tokens` tokens each.

    On a CPU `device` short problems share a row only up to 1,024 tokens; elsewhere up to `max_tokens`.

    A single branch longer than the budget gets a layout of its own: what is too long for the machine is the
    encoder's `max_length` to drop. Problems without any present rationale take part in no job.
    """
    fill = min(max_tokens, _CPU_FILL) if device is not None and device.type == "cpu" else max_tokens
    jobs: list[Job] = []
    gathered: list[EncodedProblem] = []
    tokens = 0
    for problem in problems:
        if not problem.present:
            continue
        size = len(lay_out([problem], options.with_gold).tokens)
        if gathered and tokens + size > fill:
            jobs.append(_together(gathered, options))
            gathered, tokens = [], 0
        if size > max_tokens:
            jobs.append(Job([problem], tuple(_split(problem, options, max_tokens))))
        else:
            gathered.append(problem)
            tokens += size
    if gathered:
        jobs.append(_together(gathered, options))
    return jobs


def _together(problems: Sequence[EncodedProblem], options: PassOptions) -> Job:
    problems = list(problems)
    return Job(problems, (lay_out(problems, options.with_gold),))


def _split(problem: EncodedProblem, options: PassOptions, max_tokens: int) -> Iterator[Layout]:
    """Layouts of as many branches as fit, at least one each."""
    group: list[int] = []
    for k in problem.present:
        if group and len(lay_out([problem], options.with_gold, [*group, k]).tokens) > max_tokens:
            yield lay_out([problem], options.with_gold, group)
            group = []
        group.append(k)
    yield lay_out([problem], options.with_gold, group)


def read_job(model: nn.Module, job: Job, options: PassOptions) -> StudentOutputs:
    """Read a job's layouts and arrange what they yield over its problems and teachers."""
    if len(job.layouts) == 1 or not torch.is_grad_enabled():
        readings = [read(model, layout, options) for layout in job.layouts]
    else:
        readings = [_read_again_in_backward(model, layout, options) for layout in job.layouts]
    return arrange(job.problems, readings)


def _read_again_in_backward(model: nn.Module, layout: Layout, options: PassOptions) -> Reading:
    # preserve_rng_state replays dropout exactly in the second forward.
    return checkpoint(read, model, layout, options, use_reentrant=False, preserve_rng_state=True)


# ---- what is trained on, and in which order

# Groups (optimizer steps) that are sorted together: enough to find problems of one length, few enough to stay random.
_GROUPS_SORTED_TOGETHER = 50


class ProblemDataset(Dataset[EncodedProblem]):
    """Encoded problems of which at least one rationale may get weight, and the count of every rationale's status.

    Args:
        encoded: the problems.
        max_length: what they were encoded with.
        rule: says which rationales may get weight; None: all present ones.

    Raises:
        DataError: nothing is left to train on, or the rule does not fit the data.
    """

    def __init__(self, encoded: Iterable[EncodedProblem], max_length: int, rule: Rule | None = None) -> None:
        encoded = list(encoded)
        self.statuses: Counter[RationaleStatus] = Counter(s for problem in encoded for s in problem.statuses)
        self.inferred = sum(p.answers_from[k] is AnswerFrom.INFERRED for p in encoded for k in p.present)
        present = [problem for problem in encoded if problem.present]
        self.without_rationale = len(encoded) - len(present)
        if not present:
            raise DataError(nothing_left(self.statuses, max_length))
        if rule is not None and (wrong := rule.check({name for problem in encoded for name in problem.teachers})):
            raise DataError(wrong)
        self.problems = [problem for problem in present if rule is None or rule.candidates(problem)]
        self.skipped = len(present) - len(self.problems)
        if not self.problems:
            raise DataError(nothing_left(self.statuses, max_length, self.skipped))

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> EncodedProblem:
        return self.problems[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each problem: its prompt and all present completions."""
        return [problem.size for problem in self.problems]

    def summary(self) -> str:
        """One line of counts: problems, rationales, and every rationale that does not take part, by status."""
        left_out = {status: n for status, n in sorted(self.statuses.items()) if status != RationaleStatus.OK}
        parts = [f"{len(self)} problems, {self.statuses[RationaleStatus.OK]} rationales"]
        parts += [f"{self.inferred} of them with an inferred answer"] if self.inferred else []
        parts += [f"{count} {status}" for status, count in left_out.items()]
        if self.without_rationale:
            parts.append(f"{self.without_rationale} problems without any rationale left out")
        if self.skipped:
            parts.append(f"{self.skipped} problems skipped by the weight rule: no rationale of theirs may get weight")
        return ", ".join(parts)


class LengthGroupedSampler(Sampler[int]):
    """Shuffles, then sorts stretches by length and shuffles the groups; the order depends on seed and epoch alone.

    Args:
        lengths: tokens of each problem.
        group: problems of an optimizer step.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], group: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.group = group
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        stretch = self.group * _GROUPS_SORTED_TOGETHER
        ordered = [
            index
            for start in range(0, len(order), stretch)
            for index in sorted(order[start : start + stretch], key=lambda i: -self.lengths[i])
        ]
        groups = [ordered[start : start + self.group] for start in range(0, len(ordered), self.group)]
        partial = [groups.pop()] if groups and len(groups[-1]) < self.group else []
        for index in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[index]
        for group in partial:  # the short group comes last, or every group after it would straddle two steps
            yield from group
