"""Small problems whose rows can be laid out by hand."""

from __future__ import annotations

from compact_distill.method.encode import Branch, EncodedProblem
from compact_distill.records import RationaleStatus


def branch(reasoning, answer, thinking=(), stops=()):
    return Branch(tuple(reasoning), tuple(answer), 0, tuple(thinking) or (False,) * len(reasoning), tuple(stops))


def problem(*branches, prompt=(1, 2, 3), gold=(50, 51, 52, 53), gold_span=(2, 3)):
    statuses = tuple(RationaleStatus.OK if b else RationaleStatus.MISSING for b in branches)
    names = tuple(f"t{k}" for k in range(len(branches)))
    return EncodedProblem("p", names, tuple(prompt), branches, statuses, tuple(gold), *gold_span)


RIGHT = branch([10, 11], [50, 51, 52, 53])  # ends with the gold segment


WRONG = branch([20], [50, 51, 60, 53])  # shares its first two tokens


OTHER = branch([30], [70])  # shares nothing
