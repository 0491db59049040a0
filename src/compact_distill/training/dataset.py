"""What is trained on, and in which order: shuffled, grouped by length so that the passes of a step are of a size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from compact_distill.data.preview import nothing_left
from compact_distill.errors import DataError
from compact_distill.method.encode import EncodedProblem
from compact_distill.records import RationaleStatus

# Groups (optimizer steps) that are sorted together: enough to find problems of one length, few enough to stay random.
_GROUPS_SORTED_TOGETHER = 50


class ProblemDataset(Dataset[EncodedProblem]):
    """Encoded problems with at least one present rationale, and the count of every rationale's status."""

    def __init__(self, encoded: Iterable[EncodedProblem], max_length: int) -> None:
        """Take problems that were encoded with `max_length`. Raises DataError where no rationale is left."""
        encoded = list(encoded)
        self.statuses: Counter[RationaleStatus] = Counter(s for problem in encoded for s in problem.statuses)
        self.problems = [problem for problem in encoded if problem.present]
        self.without_rationale = len(encoded) - len(self.problems)
        if not self.problems:
            raise DataError(nothing_left(self.statuses, max_length))

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
        parts += [f"{count} {status}" for status, count in left_out.items()]
        if self.without_rationale:
            parts.append(f"{self.without_rationale} problems without any rationale left out")
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
