"""What is trained on, and in which order: shuffled, grouped by length so that the passes of a step are of a size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from compact_distill.data.write import nothing_left
from compact_distill.errors import DataError
from compact_distill.method.encode import EncodedProblem
from compact_distill.method.weights import Rule
from compact_distill.records import AnswerFrom, RationaleStatus

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
            raise DataError(
                f"the weight rule leaves no rationale to train on: none of {self.skipped} problems has one that may "
                "get weight (under verified and gate: a right answer); choose another `weighting`"
            )

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> EncodedProblem:
        return self.problems[index]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each problem: its prompt and all present completions."""
        return [len(p.prompt) + sum(len(b) for b in p.branches if b is not None) for p in self.problems]

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
