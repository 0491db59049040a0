"""The generated world: arithmetic to be learned, facts that must not be forgotten, and four scripted teachers.

The teachers differ as real ones do: in length, in style, in correctness and in notation.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

from compact_distill.errors import DataError
from compact_distill.records import Instance, Problem, Rationale

Split = Literal["train", "tuning", "held_out"]

Terms = tuple[int, ...]
"""A sum: the number it starts with, then what is added or, negative, taken away."""

LARGEST = 20
"""Largest number of the world; every total of every problem lies in 0..LARGEST."""
STARTS = range(3, 16)
OPERANDS = range(1, 10)
STEPS = 3

_SPLIT_OF_BUCKET: tuple[Split, ...] = ("held_out", "held_out", "tuning", "tuning") + ("train",) * 6
_QUESTION = re.compile(r"compute (\d+(?: [+-] \d+)+) \?")


def arithmetic(split: Split, count: int, seed: int) -> list[Problem]:
    """Return `count` different problems such as `compute 7 + 5 - 3 + 2 ?`.

    The question's own hash decides its split, so no two splits share a question, whatever their seeds are.
    """
    rng = random.Random(f"{seed}/{split}/problems")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        terms = draw(rng.choice(STARTS), STEPS, rng)
        question = f"compute {plain(terms)} ?"
        if split_of(question) == split and question not in problems:
            name = f"{split}-{seed}-{len(problems)}"
            problems[question] = Problem(id=name, question=question, answer=str(sum(terms)))
    return list(problems.values())


def draw(start: int, steps: int, rng: random.Random, operands: Sequence[int] = OPERANDS) -> Terms:
    """Return a random sum whose totals are all numbers of the world."""
    terms = [start]
    for _ in range(steps):
        operand = rng.choice(operands)
        terms.append(rng.choice([term for term in (operand, -operand) if 0 <= sum(terms) + term <= LARGEST]))
    return tuple(terms)


def plain(terms: Terms) -> str:
    """Write a sum in the student's own notation: (7, 5, -3) is `7 + 5 - 3`."""
    first, *rest = terms
    return " ".join([str(first), *(f"{'+' if term > 0 else '-'} {abs(term)}" for term in rest)])


def parse(question: str) -> Terms:
    """Return the sum that an arithmetic question asks for.

    Raises:
        DataError: the question is not one of this world's.
    """
    match = _QUESTION.fullmatch(question)
    if match is None:
        raise DataError(f"question must read like 'compute 7 + 5 - 3 ?', got {question!r}; the lab knows no other kind")
    return tuple(int(term) for term in match[1].replace("+ ", "+").replace("- ", "-").split())


def steps(terms: Terms) -> list[str]:
    """Return the sum's steps in the student's own notation: (7, 5, -3) is `7 + 5 = 12` and `12 - 3 = 9`."""
    totals = list(itertools.accumulate(terms))
    return [f"{plain((total, term))} = {total + term}" for total, term in zip(totals, terms[1:], strict=False)]


def split_of(question: str) -> Split:
    """Return the split that a question belongs to, by its hash."""
    digest = hashlib.sha256(question.encode()).digest()
    return _SPLIT_OF_BUCKET[int.from_bytes(digest[:4], "big") % len(_SPLIT_OF_BUCKET)]


# One thing a row: what kind of thing it is, its color and where it is found.
_THINGS = {
    "frog": ("animal", "green", "pond"),
    "crow": ("animal", "black", "tree"),
    "fox": ("animal", "red", "forest"),
    "swan": ("animal", "white", "lake"),
    "whale": ("animal", "blue", "sea"),
    "camel": ("animal", "brown", "desert"),
    "pig": ("animal", "pink", "farm"),
    "bee": ("animal", "yellow", "garden"),
    "rose": ("plant", "red", "garden"),
    "lily": ("plant", "white", "pond"),
    "fern": ("plant", "green", "forest"),
    "wheat": ("plant", "yellow", "farm"),
    "cactus": ("plant", "green", "desert"),
    "kelp": ("plant", "brown", "sea"),
    "sugar": ("food", "white", "kitchen"),
    "cocoa": ("food", "brown", "kitchen"),
    "ham": ("food", "pink", "kitchen"),
    "plum": ("food", "blue", "tree"),
    "coal": ("mineral", "black", "mine"),
    "ruby": ("mineral", "red", "mine"),
    "jade": ("mineral", "green", "river"),
    "gold": ("mineral", "yellow", "river"),
}
_KINDS = ("animal", "plant", "food", "mineral")


def facts() -> list[Problem]:
    """Return every fact of the world as a question with a one-word answer."""
    rows = []
    for thing, (_, color, place) in _THINGS.items():
        rows.append(Problem(id=f"color-{thing}", question=f"what color has {thing} ?", answer=color))
        rows.append(Problem(id=f"place-{thing}", question=f"where is {thing} found ?", answer=place))
    return rows


def yes_no() -> list[Problem]:
    """Return questions on what kind of thing each thing is; half of the answers are yes."""
    rows = []
    for number, (thing, (kind, _, _)) in enumerate(_THINGS.items()):
        others = [other for other in _KINDS if other != kind]
        for asked in (kind, others[number % len(others)]):
            answer = "yes" if asked == kind else "no"
            rows.append(Problem(id=f"{asked}-{thing}", question=f"is {thing} {asked} ?", answer=answer))
    return rows


OPENINGS = ("First,", "So", "Therefore")
_MISCOUNTED = (8, 9)


class Teacher(Protocol):
    """Whoever writes a rationale for a problem."""

    @property
    def name(self) -> str:
        """What it is called in instances."""
        ...

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
