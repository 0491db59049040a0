"""From the stores to training data: of every problem and teacher, the rationales that this configuration asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.errors import RunError
from compact_distill.records import Problem, RationaleStatus, Verdict
from compact_distill.runs.files import atomic_write, json_line
from compact_distill.teachers.plan import accepted, draws
from compact_distill.teachers.prompt import Prompting
from compact_distill.teachers.rows import DrawStatus, Row
from compact_distill.teachers.store import StoreReader


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

    def slots(self, problem: Problem) -> Iterator[tuple[Row | None, str]]:
        """Yield, for each rationale the problem should have, the row to use and its status in training.

        A row that may not be used comes back too, as the last one that was asked for; None where there is none.
        """
        key = self._prompting.key(problem)
        for number in range(self.config.samples):
            samples = draws(number, self.config, self._generation)
            known = [s for sample in samples if (s := self.store.seen(problem.id, sample, key)) is not None]
            good = [s for s in known if accepted(s.status, s.verdict, self._generation)]
            chosen = good or known[-1:]
            row = self.store.read(chosen[0].offset) if chosen else None
            yield row, self._status(row)

    def _status(self, row: Row | None) -> str:
        if row is None:
            return RationaleStatus.MISSING
        if accepted(row.status, row.verdict, self._generation):
            return RationaleStatus.OK if self.text(row) else RationaleStatus.MISSING
        return str(RationaleStatus.REJECTED if row.status is DrawStatus.OK else row.status)

    def text(self, row: Row) -> str:
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


def _rationale(source: TeacherRows, sample: int, row: Row | None, status: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"teacher": source.config.name, "sample": sample, "text": None, "status": status}
    if row is None:
        return fields
    if status == RationaleStatus.OK:
        fields.update(text=source.text(row), answer=row.answer)
    verdict: Verdict | None = row.verdict
    return {**fields, "verdict": verdict, "tokens": row.completion_tokens, "model": row.model}
