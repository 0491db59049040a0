"""A problem's rationales, together and alone."""

from __future__ import annotations

from dataclasses import replace

from compact_distill.records import Instance, Rationale

WHOLE = Instance(
    "p",
    "What is 1 + 1?",
    "2",
    (Rationale("a", "long text"), Rationale("b", ""), Rationale("a", "y", sample=1)),
    {"source": "s"},
)


def test_apart_each_rationale_is_an_instance_of_its_own_under_an_id_of_its_own():
    alone = WHOLE.apart()
    assert [row.id for row in alone] == ["p#a", "p#b", "p#a#1"]
    assert [row.rationales[0].text for row in alone] == ["long text", "", "y"]  # what has no text is counted
    assert all(len(row.rationales) == 1 and row.rationales[0].sample == 0 for row in alone)
    assert all((row.question, row.answer, row.extra) == (WHOLE.question, "2", {"source": "s"}) for row in alone)


def test_what_is_apart_stays_as_it_is():
    alone = WHOLE.apart()
    assert [again for row in alone for again in row.apart()] == alone
    for few in ((), (Rationale("b", ""),), (Rationale("b", "x", sample=1),)):
        assert replace(WHOLE, rationales=few).apart() == [replace(WHOLE, rationales=few)]
