"""From the stores to training data, and to a table of what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from compact_distill.answers import compare_answers
from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.errors import RunError
from compact_distill.records import Problem, RationaleStatus, Verdict
from compact_distill.runs.files import atomic_write, json_line
from compact_distill.runs.progress import text_table
from compact_distill.teachers.protocol import Prompting
from compact_distill.teachers.store import RowStatus, StoredRow, StoreReader
from compact_distill.teachers.worker import accepted, sample_numbers


@dataclass(slots=True)
class Selection:
    """What was taken: problems written, problems left out for want of a rationale, statuses by teacher."""

    problems: int = 0
    left_out: int = 0
    statuses: dict[str, Counter[str]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        found = [
            f"{teacher}: " + ", ".join(f"{n} {status}" for status, n in counts.most_common())
            for teacher, counts in self.statuses.items()
        ]
        if self.left_out:
            found.append(
                f"{self.left_out} of {self.problems + self.left_out} problems have no rationale and are left out"
            )
        return found


class TeacherRows:
    """One teacher's rows for the requests that this configuration makes; rows of other prompts stay in the store."""

    def __init__(self, config: TeacherConfig, folder: Path, generation: GenerationConfig) -> None:
        self.config = config
        self.store = StoreReader(folder, config.name)
        self._prompting = Prompting(config)
        self._generation = generation

    def slots(self, problem: Problem) -> Iterator[tuple[StoredRow | None, str]]:
        """Yield, for each rationale the problem should have, the row to use and its status in training.

        A row that may not be used comes back too, as the last one that was asked for; None where there is none.
        """
        key = self._prompting.key(problem)
        for number in range(self.config.samples):
            samples = sample_numbers(number, self.config, self._generation)
            known = [s for sample in samples if (s := self.store.seen(problem.id, sample, key)) is not None]
            good = [s for s in known if accepted(s.status, s.verdict, self._generation)]
            chosen = good or known[-1:]
            row = self.store.read(chosen[0].offset) if chosen else None
            yield row, self._status(row)

    def _status(self, row: StoredRow | None) -> str:
        if row is None:
            return RationaleStatus.MISSING
        if accepted(row.status, row.verdict, self._generation):
            return RationaleStatus.OK if self.text(row) else RationaleStatus.MISSING
        return str(RationaleStatus.REJECTED if row.status is RowStatus.OK else row.status)

    def text(self, row: StoredRow) -> str:
        """What the student learns of the row."""
        parts = {"all": (row.reasoning, row.text), "reasoning": (row.reasoning,), "text": (row.text,)}
        return "\n".join(part for part in parts[self.config.rationale] if part)


def select(
    teachers: Sequence[TeacherConfig],
    generation: GenerationConfig,
    problems: Iterable[Problem],
    folder: Path,
    out: Path,
) -> Selection:
    """Write training data: a line a problem, every teacher's rationales in the configuration's order.

    A rationale that is missing or may not be used is written without text, with its status. A problem without any
    rationale is left out and counted.

    Raises:
        RunError: no problem has a rationale.
    """
    sources = [TeacherRows(config, folder, generation) for config in teachers]
    selection = Selection(statuses={config.name: Counter() for config in teachers})
    with atomic_write(out) as file:
        for problem in problems:
            rationales = []
            for source in sources:
                for sample, (row, status) in enumerate(source.slots(problem)):
                    selection.statuses[source.config.name][status] += 1
                    rationales.append(_rationale(source, sample, row, status))
            if any(rationale["text"] for rationale in rationales):
                selection.problems += 1
                fields = {"id": problem.id, "question": problem.question, "answer": problem.answer}
                file.write(json_line({**problem.extra, **fields, "rationales": rationales}))
            else:
                selection.left_out += 1
        if not selection.problems:
            raise RunError(f"no problem has a rationale: {'; '.join(selection.notes())}")
    return selection


def _rationale(source: TeacherRows, sample: int, row: StoredRow | None, status: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"teacher": source.config.name, "sample": sample, "text": None, "status": status}
    if row is None:
        return fields
    if status == RationaleStatus.OK:
        fields.update(text=source.text(row), answer=row.answer, answer_from=row.answer_from)
    verdict: Verdict | None = row.verdict
    return {**fields, "verdict": verdict, "tokens": row.completion_tokens, "model": row.model}


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
        """Right ones among those with a verdict; None without any."""
        return self.correct / self.verified if self.verified else None

    @property
    def mean_tokens(self) -> float | None:
        """Tokens of a row, where the server counts them."""
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
                summary.usable += row.status is RowStatus.OK
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
    return "\n".join(text_table(lines))


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
