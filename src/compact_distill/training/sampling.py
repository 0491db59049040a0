"""Order of the training problems: shuffled, and grouped by length so that the passes of a step are of a size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

# Groups (optimizer steps) that are sorted together: enough to find problems of one length, few enough to stay random.
_GROUPS_SORTED_TOGETHER = 50


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
