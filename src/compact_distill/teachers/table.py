"""What the stores hold: rows, verified share, length, cost, and how far teachers agree on the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from compact_distill.answers import compare_answers
from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.records import Problem, Verdict
from compact_distill.teachers.rows import DrawStatus
from compact_distill.teachers.training_data import TeacherRows


@dataclass(slots=True)
class TeacherSummary:
    """One teacher's store, old prompts' rows included in `rows` and `cost` only."""

    teacher: str
    rows: int = 0
    current: int = 0  # rows of this configuration's requests, one a slot
    usable: int = 0
    verified: int = 0  # rows with a verdict
    correct: int = 0
    tokens: int = 0  # written, where the server counts them
    counted: int = 0  # rows with such a count
    cost: float | None = None

    @property
    def correct_share(self) -> float | None:
        return self.correct / self.verified if self.verified else None

    @property
    def mean_tokens(self) -> float | None:
        return self.tokens / self.counted if self.counted else None


@dataclass(frozen=True, slots=True)
class StoreTable:
    """Summaries in the configuration's order, and the share of problems on which each pair gives the same answer."""

    teachers: tuple[TeacherSummary, ...]
    agreement: Mapping[tuple[str, str], float | None]


def summarise(
    teachers: Sequence[TeacherConfig], generation: GenerationConfig, problems: Iterable[Problem], folder: Path
) -> StoreTable:
    """Read every store once. Nothing is locked or changed, so a run may be under way."""
    sources = [TeacherRows(config, folder, generation) for config in teachers]
    summaries = [_all_rows(source) for source in sources]
    pairs = list(combinations(range(len(sources)), 2))
    both, same = dict.fromkeys(pairs, 0), dict.fromkeys(pairs, 0)
    for problem in problems:
        answers = []
        for source, summary in zip(sources, summaries, strict=True):
            slots = [row for row, _ in source.slots(problem) if row is not None]
            for row in slots:
                summary.current += 1
                summary.usable += row.status is DrawStatus.OK
                summary.verified += row.verdict is not None
                summary.correct += row.verdict is Verdict.CORRECT
                if row.completion_tokens is not None:
                    summary.tokens += row.completion_tokens
                    summary.counted += 1
            answers.append(slots[0].answer if slots else None)
        for i, j in pairs:
            first, second = answers[i], answers[j]
            if first is not None and second is not None:
                both[i, j] += 1
                same[i, j] += compare_answers(first, second) is Verdict.CORRECT
    names = [config.name for config in teachers]
    agreement = {(names[i], names[j]): same[i, j] / both[i, j] if both[i, j] else None for i, j in pairs}
    return StoreTable(tuple(summaries), agreement)


def _all_rows(source: TeacherRows) -> TeacherSummary:
    summary = TeacherSummary(source.config.name)
    for row in source.store.rows():
        summary.rows += 1
        if row.cost is not None:
            summary.cost = (summary.cost or 0.0) + row.cost
    return summary


def render(table: StoreTable) -> str:
    """Return the table as text."""
    heads = ["teacher", "rows", "current", "usable", "correct", "tokens", "cost"]
    heads += [f"= {summary.teacher}" for summary in table.teachers]
    lines = [heads]
    for summary in table.teachers:
        line = [
            summary.teacher,
            str(summary.rows),
            str(summary.current),
            str(summary.usable),
            _share(summary.correct_share),
            "-" if summary.mean_tokens is None else f"{summary.mean_tokens:.0f}",
            "-" if summary.cost is None else f"{summary.cost:.2f}",
        ]
        for other in table.teachers:
            pair = (summary.teacher, other.teacher)
            line.append("" if summary is other else _share(table.agreement.get(pair, table.agreement.get(pair[::-1]))))
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    # Names stand at the left, numbers at the right.
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
