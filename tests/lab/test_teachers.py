"""The scripted teachers: three are right, one is right half of the time, and all repeat themselves exactly."""

from __future__ import annotations

import re

import pytest

from compact_distill.answers import extract_answer
from compact_distill.lab.problems import LARGEST, arithmetic
from compact_distill.lab.teachers import Erring, Foreign, Terse, Verbose, instances, pool, roman
from compact_distill.method.encode import LEXICON
from compact_distill.records import Problem

PROBLEMS = arithmetic("train", 400, seed=0)
PROBLEM = Problem(id="p", question="compute 7 + 5 - 3 ?", answer="9")


def share_right(teacher: object) -> float:
    return sum(extract_answer(teacher.write(p)) == p.answer for p in PROBLEMS) / len(PROBLEMS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("teacher", [Terse(), Verbose(), Foreign()], ids=lambda t: t.name)
def test_these_teachers_are_always_right(teacher: object) -> None:
    assert share_right(teacher) == 1.0


def test_the_erring_teacher_is_right_about_half_of_the_time() -> None:
    assert 0.42 < share_right(Erring()) < 0.58


def test_the_terse_teacher_writes_bare_steps() -> None:
    assert Terse().write(PROBLEM) == "7 + 5 = 12. 12 - 3 = 9.\n#### 9"


def test_the_erring_teacher_miscounts_8_and_9_by_one_and_goes_on_from_there() -> None:
    for problem in PROBLEMS:
        steps = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", Erring().write(problem))
        for a, sign, b, result in steps:
            slip = int(result) - (int(a) + int(f"{sign}{b}"))
            assert slip in ((0, -1 if sign == "+" else 1) if b in ("8", "9") else (0,))
        assert [step[3] for step in steps[:-1]] == [step[0] for step in steps[1:]]
        assert all(0 <= int(step[3]) <= LARGEST for step in steps)


def test_the_erring_teacher_by_hand() -> None:
    problem = Problem(id="p", question="compute 3 + 9 - 8 + 2 ?", answer="6")
    assert Erring().write(problem) == "We get 3 + 9 = 11 and 11 - 8 = 4 and 4 + 2 = 6.\nThe answer is 6."
    problem = Problem(id="p", question="compute 3 + 9 - 2 ?", answer="10")
    assert Erring().write(problem) == "We get 3 + 9 = 11 and 11 - 2 = 9.\nThe answer is 9."


def test_the_erring_teacher_makes_no_slip_that_leaves_the_world() -> None:
    problem = Problem(id="p", question="compute 3 + 9 - 6 - 6 ?", answer="0")
    assert Erring().write(problem) == "We get 3 + 9 = 12 and 12 - 6 = 6 and 6 - 6 = 0.\nThe answer is 0."


def test_the_foreign_teacher_writes_the_same_steps_in_roman_numerals() -> None:
    assert Foreign().write(PROBLEM) == "VII et V sunt XII. XII sine III sunt IX.\nA: 9"


def test_the_verbose_teacher_thinks_aloud_and_the_terse_one_does_not() -> None:
    def thinking_words(text: str) -> int:
        return sum(word.strip(".,:").lower() in LEXICON for word in text.split())

    assert all(thinking_words(Verbose().write(p)) >= 4 for p in PROBLEMS[:50])
    assert all(thinking_words(Terse().write(p)) == 0 for p in PROBLEMS[:50])


def test_a_teacher_repeats_itself_exactly_whatever_it_was_asked_before() -> None:
    for teacher, again in zip(pool(5), pool(5), strict=True):
        texts = [teacher.write(p) for p in PROBLEMS[:20]]
        assert [again.write(p) for p in reversed(PROBLEMS[:20])] == texts[::-1]


def test_another_seed_or_sample_gives_other_texts() -> None:
    texts = [[Verbose(seed).write(p, sample) for p in PROBLEMS[:20]] for seed, sample in ((0, 0), (1, 0), (0, 1))]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]


def test_every_instance_holds_the_four_teachers_in_order() -> None:
    made = instances(PROBLEMS[:3], pool())
    assert [i.id for i in made] == [p.id for p in PROBLEMS[:3]]
    assert all(i.teachers == ("terse", "verbose", "erring", "foreign") for i in made)


def test_numerals_computed_by_hand() -> None:
    assert [roman(n) for n in (0, 1, 4, 9, 14, 19, 26, 39)] == ["N", "I", "IV", "IX", "XIV", "XIX", "XXVI", "XXXIX"]
    with pytest.raises(ValueError, match=r"0\.\.39, got 40"):
        roman(40)
