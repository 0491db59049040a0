"""What the student reads before any teacher: arithmetic of one and two steps, facts and yes/no; no whole problem."""

from __future__ import annotations

import random

from compact_distill.config import TextConfig
from compact_distill.lab.problems import LARGEST, draw, facts, plain, steps, yes_no
from compact_distill.lab.teachers import OPENINGS

_SHARES = {"worked": 7, "step": 2, "thought": 2, "fact": 4, "yes_no": 5}
"""How often each kind of line is drawn, out of the total."""


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
    """A worked sum of one or two steps; problems have three, so the student has to go one further."""
    terms = draw(rng.randint(0, LARGEST), rng.randint(1, 2) if kind == "worked" else 1, rng)
    written = steps(terms)
    if kind == "worked":
        return _prompted(f"compute {plain(terms)} ?", f"{' '.join(f'{step}.' for step in written)}\n", str(sum(terms)))
    return f"{rng.choice(OPENINGS)} {written[0]}." if kind == "thought" else f"{written[0]}."


def _prompted(question: str, reasoning: str, answer: str) -> str:
    text = TextConfig()
    return f"{text.prompt_template.format(question=question)} {reasoning}{text.answer_template.format(answer=answer)}"
