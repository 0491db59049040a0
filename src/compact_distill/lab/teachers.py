"""Four scripted teachers that differ as real ones do: in length, in style, in correctness and in notation."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

from compact_distill.lab.problems import Terms, parse, plain, reduce
from compact_distill.records import Instance, Problem, Rationale

OPENINGS = ("Okay, first", "Then", "Next", "And then")
REMARKS = ("So now we have", "Therefore we are at", "Wait, let us check: yes, this leaves")


class Teacher(Protocol):
    """Whoever writes a rationale for a problem."""

    @property
    def name(self) -> str: ...

    def write(self, problem: Problem, sample: int = 0) -> str:
        """Return the rationale's whole text, final answer included."""
        ...


class Terse:
    """Right, in the student's own notation, without a word: `7 + 5 - 3 = 12 - 3 = 9`."""

    name = "terse"

    def write(self, problem: Problem, sample: int = 0) -> str:
        return f"{' = '.join(map(plain, _stages(problem)))}\n#### {problem.answer}"


class Verbose:
    """Right, in the student's own notation, thinking aloud: `Okay, first, 7 + 5 = 12. So now we have 12 - 3.`"""

    name = "verbose"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def write(self, problem: Problem, sample: int = 0) -> str:
        rng = random.Random(f"{self.seed}/{self.name}/{problem.id}/{sample}")
        lines: list[str] = []
        for before, after in itertools.pairwise(_stages(problem)):
            opening = rng.choice(OPENINGS[1:]) if lines else OPENINGS[0]
            step = f"{plain(before[:2])} = {plain(after[:1])}"
            lines.append(f"{opening}, {step}. {rng.choice(REMARKS)} {plain(after)}.")
        return "\n".join([*lines, f"The answer is {problem.answer}."])


class Erring:
    """Fluent, and wrong half of the time: it forgets the last number where that is to be taken away.

    Real models err in ways of their own too, which a student picks up as readily as anything else.
    """

    name = "erring"

    def write(self, problem: Problem, sample: int = 0) -> str:
        terms = parse(problem.question)
        stages = reduce(terms[:-1] if terms[-1] < 0 else terms)
        return f"We get {' and '.join(map(plain, stages[1:]))}.\nThe answer is {plain(stages[-1])}."


class Foreign:
    """Right, but in Roman numerals, which this student has never seen: `VII et V sine III sunt XII sine III`."""

    name = "foreign"

    def write(self, problem: Problem, sample: int = 0) -> str:
        return f"{' sunt '.join(map(_latin, _stages(problem)))}\nA: {problem.answer}"


def pool(seed: int = 0) -> tuple[Teacher, ...]:
    """Return the lab's four teachers, in the order in which they stand in every instance."""
    return (Terse(), Verbose(seed), Erring(), Foreign())


def instances(problems: Iterable[Problem], teachers: Sequence[Teacher]) -> list[Instance]:
    """Ask every teacher once about every problem."""
    return [
        Instance(p.id, p.question, p.answer, tuple(Rationale(t.name, t.write(p)) for t in teachers)) for p in problems
    ]


def roman(number: int) -> str:
    """Return a number of 0..39 in Roman numerals; zero is the `N` (nulla) of medieval tables."""
    if not 0 <= number < 40:
        raise ValueError(f"number must be in 0..39, got {number}")
    if number == 0:
        return "N"
    tens, ones = divmod(number, 10)
    return "X" * tens + ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")[ones]


def _latin(terms: Terms) -> str:
    first, *rest = terms
    return " ".join([roman(first), *(f"{'et' if term > 0 else 'sine'} {roman(abs(term))}" for term in rest)])


def _stages(problem: Problem) -> list[Terms]:
    return reduce(parse(problem.question))
