"""The embedded world's problems: right answers, splits that never meet, the same for the same seed."""

from __future__ import annotations

import re

import pytest

from compact_distill.answers import extract_answer
from compact_distill.errors import DataError
from compact_distill.lab import (
    LARGEST,
    Erring,
    Foreign,
    Terse,
    Verbose,
    arithmetic,
    facts,
    instances,
    parse,
    plain,
    pool,
    roman,
    steps,
    yes_no,
)
from compact_distill.method.encode import LEXICON
from compact_distill.records import Problem


def test_the_answer_is_what_python_computes() -> None:
    for problem in arithmetic("train", 200, seed=0):
        expression = problem.question.removeprefix("compute ").removesuffix(" ?")
        assert int(problem.answer) == eval(expression)


def test_every_total_stays_within_the_world() -> None:
    for problem in arithmetic("train", 200, seed=1):
        assert all(0 <= int(step.split()[-1]) <= LARGEST for step in steps(parse(problem.question)))


def test_a_sum_is_read_reduced_and_written_as_by_hand() -> None:
    assert parse("compute 7 + 5 - 3 + 2 ?") == (7, 5, -3, 2)
    assert steps((7, 5, -3, 2)) == ["7 + 5 = 12", "12 - 3 = 9", "9 + 2 = 11"]
    assert plain((12, -3, 2)) == "12 - 3 + 2"


def test_splits_share_no_question_whatever_their_seeds_are() -> None:
    questions = {
        split: {p.question for seed in range(4) for p in arithmetic(split, 300, seed)}
        for split in ("train", "tuning", "held_out")
    }
    assert not questions["train"] & questions["tuning"]
    assert not questions["train"] & questions["held_out"]
    assert not questions["tuning"] & questions["held_out"]


def test_a_split_holds_no_question_twice() -> None:
    problems = arithmetic("held_out", 500, seed=0)
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == 500


def test_the_same_seed_gives_the_same_problems_and_another_seed_others() -> None:
    assert arithmetic("train", 50, seed=3) == arithmetic("train", 50, seed=3)
    assert arithmetic("train", 50, seed=3) != arithmetic("train", 50, seed=4)


def test_another_kind_of_question_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'what color has fox \\?'"):
        parse("what color has fox ?")


def test_half_of_the_yes_no_questions_are_answered_yes() -> None:
    answers = [problem.answer for problem in yes_no()]
    assert answers.count("yes") == answers.count("no") == len(answers) / 2


def test_knowledge_has_one_answer_a_question() -> None:
    known = [*facts(), *yes_no()]
    assert len({p.question for p in known}) == len({p.id for p in known}) == len(known)


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
