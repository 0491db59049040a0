"""What happened to one teacher's requests in this run: every answer and every fault is counted somewhere."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from compact_distill.records import Verdict
from compact_distill.teachers.protocol import FaultKind, TeacherFault
from compact_distill.teachers.rows import DrawStatus, Row

_SAMPLES_TO_COMPARE = 5


@dataclass(slots=True)
class Tally:
    """Counts of one teacher. `planned` slots were open when the run began, `stored` were filled before."""

    teacher: str
    planned: int = 0
    stored: int = 0
    filled: int = 0
    statuses: Counter[DrawStatus] = field(default_factory=Counter)
    verdicts: Counter[Verdict | None] = field(default_factory=Counter)
    failed: Counter[FaultKind] = field(default_factory=Counter)  # requests given up
    examples: dict[FaultKind, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    further_samples: int = 0  # answers to a problem that had one already
    dead: str | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def wanted(self) -> int:
        """Slots in all; what earlier runs filled counts, or one row that always fails would fail every rerun."""
        return self.stored + self.planned

    @property
    def answers(self) -> int:
        return self.statuses.total()

    @property
    def unanswered(self) -> int:
        """Planned slots that got no answer and should have; a file that lacks a rationale is no error."""
        absent = self.failed[FaultKind.ABSENT]
        asked_in_vain = self.failed.total() - absent
        return self.planned - self.filled - absent if self.dead else asked_in_vain

    @property
    def repeats_itself(self) -> bool:
        """Whether the server gives the same text to every sample, whatever seed and temperature are."""
        return (
            self.further_samples >= _SAMPLES_TO_COMPARE and self.statuses[DrawStatus.DUPLICATE] == self.further_samples
        )

    @property
    def correct_share(self) -> float | None:
        """Correct among the answers with a verdict."""
        known = self.verdicts.total() - self.verdicts[None]
        return self.verdicts[Verdict.CORRECT] / known if known else None

    def answer(self, row: Row, further: bool) -> None:
        """Count one answer; `further` says that its problem had one already."""
        self.statuses[row.status] += 1
        self.further_samples += further and row.status is not DrawStatus.EMPTY
        self.prompt_tokens += row.prompt_tokens or 0
        self.completion_tokens += row.completion_tokens or 0
        if row.cost is not None:
            self.cost = (self.cost or 0.0) + row.cost

    def fail(self, fault: TeacherFault) -> None:
        """Count one request that was given up."""
        self.failed[fault.kind] += 1
        self.examples.setdefault(fault.kind, str(fault))

    def notes(self) -> list[str]:
        """What the user should know, a sentence each."""
        found = [f"{n} without an answer ({kind}): {self.examples[kind]}" for kind, n in sorted(self.failed.items())]
        found += [f"{n} answers {status}" for status, n in sorted(self.statuses.items()) if status is not DrawStatus.OK]
        if self.verdicts[Verdict.TIMED_OUT]:
            found.append(f"{self.verdicts[Verdict.TIMED_OUT]} answers could not be verified in time")
        if self.repeats_itself:
            found.append(
                "every further sample repeats an earlier one letter by letter: the server ignores seed and "
                "temperature; let it sample (transformers serve: do_sample in generation_config), or set `samples: 1`"
            )
        if self.dead:
            found.append(f"not asked any more: {self.dead}")
        return [f"{self.teacher}: {note}" for note in found]
