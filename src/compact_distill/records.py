"""Frozen records that cross module boundaries, what all that is closed has in common, the legend of tensor shapes.

Shape suffixes used across the package:

    B  problems in a batch             A  gold-answer tokens of a problem
    K  teachers (rationales a problem) V  vocabulary
    T  tokens                          H  attention heads
    N  rows, of whatever the text says D  width of the student's hidden state

`weights_BK` is a [B, K] tensor; a missing teacher has weight 0 and no scores. Log-probabilities are in nats,
losses in nats per token, durations in seconds, positions in tokens from the start of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self


class Closing:
    """Base of what must be closed when its user is done with it: a `with` block does it, however the block ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what is held."""
        raise NotImplementedError(f"{type(self).__name__} must say how it is closed")


class Verdict(StrEnum):
    """What became of the comparison of one answer with the gold answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMED_OUT = "timed_out"


class AnswerFrom(StrEnum):
    """Where a rationale's final answer was found."""

    STATED = "stated"  # the writer says that it is the answer, or the row gives it
    INFERRED = "inferred"  # from the closing sentence or the first word (compact_distill.answers.find)


class RationaleStatus(StrEnum):
    """Whether a rationale takes part in training, and if not, why. Every status but `ok` is counted and printed."""

    OK = "ok"
    MISSING = "missing"  # there is none, and the data does not say why
    UNPARSED = "unparsed"  # no final answer found, so no answer segment can be built
    NO_ANSWER = "no_answer"  # the text ended by itself and gives none: neither yes nor no, no number
    OVER_LENGTH = "over_length"  # prompt + completion exceed max_length; dropped, never cut
    REJECTED = "rejected"  # the rejection policy removed it (wrong answer)
    TRUNCATED = "truncated"  # the teacher was cut off at its limit of tokens
    REFUSED = "refused"  # the teacher's server says so
    EMPTY = "empty"  # the teacher wrote nothing
    DUPLICATE = "duplicate"  # letter by letter another sample of the same problem
    INTERRUPTED = "interrupted"  # the teacher's server stopped for a reason of its own


@dataclass(frozen=True, slots=True)
class Rationale:
    """One teacher's chain of thought for one problem.

    `answer` is the teacher's final answer as it wrote it, `answer_from` where it was found (None: the row just gives
    it); without an answer it is looked for in `text`.
    `extra` keeps the row's other fields (`is_correct`, token counts, cost) untouched.
    """

    teacher: str
    text: str
    answer: str | None = None
    sample: int = 0
    verdict: Verdict | None = None
    answer_from: AnswerFrom | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer; `extra` keeps the row's other fields."""

    id: str
    question: str
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instance:
    """A problem joined with the rationales of its teachers, in the row's order. K may differ between instances."""

    id: str
    question: str
    answer: str
    rationales: tuple[Rationale, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the K teachers, in order; a second sample of one teacher is named `teacher#1`."""
        return tuple(r.teacher if r.sample == 0 else f"{r.teacher}#{r.sample}" for r in self.rationales)

    def apart(self) -> list[Instance]:
        """Each rationale as an instance of its own, its id the problem's and the teacher's; also those without a text.

        An instance that has one rationale at most is that already.
        """
        if len(self.rationales) <= 1:
            return [self]
        return [
            replace(self, id=f"{self.id}#{name}", rationales=(replace(rationale, sample=0),))
            for name, rationale in zip(self.teachers, self.rationales, strict=True)
        ]


# Built-in scores of which less is better; where users register others, a run's manifest names them.
LESS_IS_BETTER = ("difficulty", "rank_surprisal")


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Compatibility of one problem's K rationales with the student, as `compact score` writes it.

    A missing rationale has None in each score and weight 0.
    """

    id: str
    teachers: tuple[str, ...]
    consensus: tuple[float | None, ...]
    adaptability: tuple[float | None, ...]
    difficulty: tuple[float | None, ...]
    weights: tuple[float, ...]
    statuses: tuple[RationaleStatus, ...]
    extra_scores: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


def score_fields(row: ScoreRow) -> dict[str, Any]:
    """A row of scores as `compact score` and the trace write it; `extra_scores` only where users registered some."""
    extra = {name: list(values) for name, values in row.extra_scores.items()}
    return {
        "id": row.id,
        "teachers": list(row.teachers),
        "consensus": list(row.consensus),
        "adaptability": list(row.adaptability),
        "difficulty": list(row.difficulty),
        "weights": list(row.weights),
        **({"extra_scores": extra} if extra else {}),
    }
