"""What is trained on: instances as tokens, with a count of every rationale that does not take part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch.utils.data import Dataset

from compact_distill.errors import DataError
from compact_distill.method.encode import EncodedProblem, Encoder
from compact_distill.records import Instance, RationaleStatus


class ProblemDataset(Dataset[EncodedProblem]):
    """Encoded problems with at least one present rationale, and the count of every rationale's status."""

    def __init__(self, instances: Sequence[Instance], encoder: Encoder) -> None:
        encoded = list(encoder.encode_all(instances))
        self.statuses: Counter[RationaleStatus] = Counter(s for problem in encoded for s in problem.statuses)
        self.problems = [problem for problem in encoded if problem.present]
        self.without_rationale = len(encoded) - len(self.problems)
        if not self.problems:
            counts = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items())) or "no rows"
            raise DataError(
                f"no rationale is left to train on ({counts}); max_length is {encoder.max_length} tokens: "
                "raise it for over_length, and end texts with 'The answer is ...' for unparsed"
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
        parts += [f"{count} {status}" for status, count in left_out.items()]
        if self.without_rationale:
            parts.append(f"{self.without_rationale} problems without any rationale left out")
        return ", ".join(parts)
