"""What the student reads before any teacher: sums with small operands in the styles it will meet, facts and yes/no."""

from __future__ import annotations

import random

from compact_distill.config.models import TextConfig
from compact_distill.lab.problems import LARGEST, STEPS, Terms, draw, facts, plain, split_of, steps, yes_no
from compact_distill.lab.teachers import OPENINGS

_SHARES = {"worked": 7, "step": 2, "thought": 2, "fact": 4, "yes_no": 5}
"""How often each kind of line is drawn, out of the total."""
KNOWN_OPERANDS = range(1, 7)
"""What the student can add and take away before any teacher; problems go on to 9."""
_WORKED_STEPS = {1: 2, 2: 2, STEPS: 1}
"""How often a worked sum has so many steps, out of the total."""


def lines(count: int, seed: int) -> list[str]:
    """Return `count` lines of text, the same for the same seed."""
    rng = random.Random(f"{seed}/corpus")
    known = {"fact": facts(), "yes_no": yes_no()}
    texts = []
    for kind in rng.choices(list(_SHARES), weights=list(_SHARES.values()), k=count):
        if kind in known:
            problem = rng.choice(known[kind])
            texts.append(_prompted(problem.question, "", problem.answer))
        else:
            texts.append(_arithmetic(kind, rng))
    return texts


def _arithmetic(kind: str, rng: random.Random) -> str:
    if kind == "worked":
        terms = _worked(rng)
        return _prompted(f"compute {plain(terms)} ?", f"{_in_a_style(terms, rng)}\n", str(sum(terms)))
    (step,) = steps(draw(rng.randint(0, LARGEST), 1, rng, KNOWN_OPERANDS))
    return f"{rng.choice(OPENINGS)} {step}." if kind == "thought" else f"{step}."


def _worked(rng: random.Random) -> Terms:
    """A sum of up to as many steps as problems have, never one of the tuning or held-out problems."""
    (count,) = rng.choices(list(_WORKED_STEPS), weights=list(_WORKED_STEPS.values()))
    while True:
        terms = draw(rng.randint(0, LARGEST), count, rng, KNOWN_OPERANDS)
        if count < STEPS or split_of(f"compute {plain(terms)} ?") == "train":
            return terms


def _in_a_style(terms: Terms, rng: random.Random) -> str:
    """A sum's steps as one of three teachers would write them: terse, thinking aloud, in one sentence."""
    written = steps(terms)
    style = rng.choice(("terse", "aloud", "sentence"))
    if style == "sentence":
        return f"We get {' and '.join(written)}."
    if style == "aloud":
        first, *others = written
        written = [f"{OPENINGS[0]} {first}", *(f"{rng.choice(OPENINGS[1:])} {step}" for step in others)]
        if rng.random() < 0.5:
            written.append(f"Wait: yes, it is {sum(terms)}")
    return " ".join(f"{step}." for step in written)


def _prompted(question: str, reasoning: str, answer: str) -> str:
    text = TextConfig()
    return f"{text.prompt_template.format(question=question)} {reasoning}{text.answer_template.format(answer=answer)}"
