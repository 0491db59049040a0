"""The embedded world's problems: right answers, splits that never meet, the same for the same seed."""

from __future__ import annotations

import pytest

from compact_distill.errors import DataError
from compact_distill.lab.problems import LARGEST, arithmetic, facts, parse, plain, steps, yes_no


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
