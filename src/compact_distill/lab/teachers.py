"""Four scripted teachers that differ as real ones do: in length, in style, in correctness and in notation."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

from compact_distill.lab.problems import LARGEST, parse, plain, steps
from compact_distill.records import Instance, Problem, Rationale

OPENINGS = ("First,", "So", "Therefore")
_MISCOUNTED = (8, 9)


class Teacher(Protocol):
    """Whoever writes a rationale for a problem."""

    @property
    def name(self) -> str: ...

    def write(self, problem: Problem, sample: int = 0) -> str:
        """Return the rationale's whole text, final answer included."""
        ...


class Terse:
    """Right, in the student's own notation, without a word: `7 + 5 = 12. 12 - 3 = 9.`"""

    name = "terse"

    def write(self, problem: Problem, sample: int = 0) -> str:
        return f"{' '.join(f'{step}.' for step in steps(parse(problem.question)))}\n#### {problem.answer}"


class Verbose:
    """Right, in the student's own notation, thinking aloud: `First, 7 + 5 = 12. So 12 - 3 = 9. Wait: yes, it is 9.`"""

    name = "verbose"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def write(self, problem: Problem, sample: int = 0) -> str:
        rng = random.Random(f"{self.seed}/{self.name}/{problem.id}/{sample}")
        first, *others = steps(parse(problem.question))
        thoughts = [f"{OPENINGS[0]} {first}.", *(f"{rng.choice(OPENINGS[1:])} {step}." for step in others)]
        return f"{' '.join(thoughts)} Wait: yes, it is {problem.answer}.\nThe answer is {problem.answer}."


class Erring:
    """Fluent, and wrong in half of the problems: it miscounts 8 and 9 by one, and goes on from the wrong result."""

    name = "erring"

    def write(self, problem: Problem, sample: int = 0) -> str:
        total, *operands = parse(problem.question)
        written = []
        for number, operand in enumerate(operands):
            result = total + operand
            if abs(operand) in _MISCOUNTED:
                near = result - 1 if operand > 0 else result + 1
                # A slip after which the sum would leave the world is not made.
                if all(0 <= t <= LARGEST for t in itertools.accumulate(operands[number + 1 :], initial=near)):
                    result = near
            written.append(f"{plain((total, operand))} = {result}")
            total = result
        return f"We get {' and '.join(written)}.\nThe answer is {total}."


class Foreign:
    """Right, but in Roman numerals, which this student has never seen: `VII et V sunt XII. XII sine III sunt IX.`"""

    name = "foreign"

    def write(self, problem: Problem, sample: int = 0) -> str:
        latin = [_latin(step) for step in steps(parse(problem.question))]
        return f"{' '.join(f'{step}.' for step in latin)}\nA: {problem.answer}"


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


def _latin(step: str) -> str:
    signs = {"+": "et", "-": "sine", "=": "sunt"}
    return " ".join(signs.get(word) or roman(int(word)) for word in step.split())
