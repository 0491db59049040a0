"""What the student reads before any teacher: short lines of arithmetic, facts and yes/no; never a whole problem."""

from __future__ import annotations

import random

from compact_distill.config import TextConfig
from compact_distill.lab.problems import LARGEST, draw, facts, plain, reduce, yes_no
from compact_distill.lab.teachers import OPENINGS, REMARKS
from compact_distill.records import Problem

_SHARES = {"reduction": 6, "thought": 5, "sum": 3, "fact": 3, "yes_no": 4}
"""How often each kind of line is drawn, out of the total."""


def lines(count: int, seed: int) -> list[str]:
    """Return `count` lines of text, the same for the same seed."""
    rng = random.Random(f"{seed}/corpus")
    known = {"fact": facts(), "yes_no": yes_no()}
    kinds = rng.choices(list(_SHARES), weights=list(_SHARES.values()), k=count)
    return [_as_text(rng.choice(known[kind])) if kind in known else _arithmetic(kind, rng) for kind in kinds]


def _arithmetic(kind: str, rng: random.Random) -> str:
    terms = draw(rng.randint(0, LARGEST), rng.choice((1, 1, 2)) if kind in ("reduction", "thought") else 1, rng)
    before, after = reduce(terms)[:2]
    if kind == "sum":
        return _as_text(Problem(id="", question=f"compute {plain(terms)} ?", answer=str(sum(terms))))
    if kind == "reduction":
        return rng.choice(("{0} = {1}", "{0} = {1}", "We get {1}.")).format(plain(before), plain(after))
    step = f"{plain(before[:2])} = {plain(after[:1])}"
    return f"{rng.choice(OPENINGS)}, {step}. {rng.choice(REMARKS)} {plain(after)}."


def _as_text(problem: Problem) -> str:
    text = TextConfig()
    prompt = text.prompt_template.format(question=problem.question)
    return f"{prompt} {text.answer_template.format(answer=problem.answer)}"
