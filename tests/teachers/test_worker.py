"""One teacher: its samples, what becomes of each kind of answer, and asking until it is right."""

from __future__ import annotations

from collections import Counter

import pytest

from compact_distill.records import Verdict
from compact_distill.teachers.store import RowStatus
from teachers.conftest import teacher
from teachers.server import Server, questions, right, says


def test_samples_are_requests_of_their_own_with_their_own_seeds(ask, problems, stored):
    with Server(right) as server:
        ask(teacher(server.url, samples=3), problems(4))
        bodies = [seen.body for seen in server.seen if "problem" in seen.body["messages"][-1]["content"]]
        assert len(bodies) == 12
        assert len({body["seed"] for body in bodies}) == 12
        assert all("n" not in body for body in bodies)
    assert sorted((row.id, row.sample) for row in stored()) == [(f"p{i}", s) for i in range(4) for s in range(3)]


def test_a_stored_sample_never_stands_in_for_a_new_one(ask, problems, stored):
    with Server(right) as server:
        ask(teacher(server.url, samples=1), problems(4))
        ask(teacher(server.url, samples=2), problems(4))
        assert len(questions(server)) == 8
    assert Counter(row.sample for row in stored()) == {0: 4, 1: 4}
    assert len({row.text for row in stored()}) == 8


def test_a_server_that_repeats_itself_is_noticed_and_named(ask, problems, stored, capsys):
    with Server(lambda body, number: says(f"{body['messages'][-1]['content']}\nThe answer is 4.")) as server:
        ask(teacher(server.url, samples=3), problems(4))
    assert Counter(row.status for row in stored()) == {RowStatus.OK: 4, RowStatus.DUPLICATE: 8}
    said = capsys.readouterr().err
    assert "t: 8 answers duplicate" in said
    assert "every further sample repeats an earlier one letter by letter" in said
    assert "do_sample in generation_config" in said


def test_each_kind_of_answer_has_its_status_and_is_asked_once_but_for_empty_ones(ask, problems, stored, quick):
    answers = {
        "p0": (says("The answer is 4."), RowStatus.OK, Verdict.CORRECT),
        "p1": (says("The answer is 5."), RowStatus.OK, Verdict.WRONG),
        "p2": (says("The answer is 4.", finish_reason="length"), RowStatus.TRUNCATED, Verdict.CORRECT),
        "p3": (says(None, refusal="I would rather not."), RowStatus.REFUSED, Verdict.UNPARSED),
        "p4": (says(None), RowStatus.EMPTY, Verdict.UNPARSED),
        "p5": (says("I have no idea how to go about it."), RowStatus.NO_ANSWER, Verdict.UNPARSED),
        "p6": (says("<think>two and two</think>The answer is 4."), RowStatus.OK, Verdict.CORRECT),
        "p7": (says("<think>two and two and"), RowStatus.UNPARSED, Verdict.UNPARSED),
        "p8": (says("The answer is 4.", reasoning_content="two and two"), RowStatus.OK, Verdict.CORRECT),
    }
    ready = says("ready")
    with Server(lambda body, n: next((a[0] for p, a in answers.items() if f"{p}?" in str(body)), ready)) as server:
        outcome = ask(teacher(server.url), problems(9))
        ask(teacher(server.url), problems(9))
        assert Counter(questions(server)) == {p.question: 3 if p.id == "p4" else 1 for p in problems(9)}
    found = {row.id: row for row in stored()}
    assert {i: (row.status, row.verdict) for i, row in found.items()} == {i: a[1:] for i, a in answers.items()}
    assert (found["p6"].reasoning, found["p6"].text) == ("two and two", "The answer is 4.")
    assert found["p8"].reasoning == "two and two"
    assert outcome[0].statuses == Counter(a[1] for a in answers.values())


NOTHING = {
    "null": says(None),
    "spaces": says("  "),
    "no text": says(""),
    "no parts": says([]),
    "a part without text": says([{"type": "text", "text": ""}]),
    "thinking without a thought": says("<think>\n\n</think>\n"),
    "an end that the server does not explain": says("", finish_reason=None),
}


@pytest.mark.parametrize("reply", NOTHING.values(), ids=NOTHING)
def test_an_empty_reply_is_asked_again_and_costs_no_row(ask, problems, stored, quick, reply):
    emptied: set[str] = set()

    def slips(body, number):
        question = body["messages"][-1]["content"]
        if question in emptied:
            return right(body, number)
        emptied.add(question)
        return reply

    with Server(slips) as server:
        ask(teacher(server.url), problems(2), max_retries=0)
        assert Counter(questions(server)) == {p.question: 2 for p in problems(2)}
    assert [row.status for row in stored()] == [RowStatus.OK] * 2


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (says("", finish_reason="length"), RowStatus.TRUNCATED),
        (says("", finish_reason="content_filter"), RowStatus.REFUSED),
        (says(None, reasoning_content="two and two"), RowStatus.UNPARSED),  # a thought is something
        (says("?"), RowStatus.NO_ANSWER),
    ],
    ids=["cut", "filtered", "thought", "one sign"],
)
def test_a_reply_that_says_why_it_is_short_is_asked_once(ask, problems, stored, quick, reply, status):
    with Server(lambda body, number: reply) as server:
        ask(teacher(server.url), problems(1), max_retries=0)
        assert len([q for q in questions(server) if q == problems(1)[0].question]) == 1
    assert [row.status for row in stored()] == [status]


def wrong_until(n):
    """Wrong in the first n samples of a problem, then right."""
    asked: Counter[str] = Counter()

    def behave(body, number):
        question = body["messages"][-1]["content"]
        asked[question] += 1
        return says(f"try {asked[question]}: the answer is {4 if asked[question] > n else 5}.")

    return behave


def test_until_correct_asks_again_until_it_is_right(ask, problems, stored):
    with Server(wrong_until(2)) as server:
        ask(teacher(server.url), problems(3), rejection="until_correct", attempts=4)
        assert Counter(questions(server)) == {p.question: 3 for p in problems(3)}
        count = len(server.seen)
        ask(teacher(server.url), problems(3), rejection="until_correct", attempts=4)
        assert len(server.seen) == count
    assert Counter((row.sample, row.verdict) for row in stored()) == {
        (0, Verdict.WRONG): 3,
        (1, Verdict.WRONG): 3,
        (2, Verdict.CORRECT): 3,
    }


def test_until_correct_gives_up_after_its_attempts_and_more_attempts_go_on_from_there(ask, problems, stored):
    with Server(wrong_until(4)) as server:
        ask(teacher(server.url), problems(2), rejection="until_correct", attempts=3)
        assert len(questions(server)) == 6
        ask(teacher(server.url), problems(2), rejection="until_correct", attempts=9)
        assert len(questions(server)) == 10
    assert max(row.sample for row in stored()) == 4


def test_changing_the_rejection_asks_nothing_twice(ask, problems, stored):
    with Server(wrong_until(1)) as server:
        ask(teacher(server.url, samples=2), problems(2), rejection="none")
        assert len(questions(server)) == 4
        ask(teacher(server.url, samples=2), problems(2), rejection="correct_only")
        assert len(questions(server)) == 4
        ask(teacher(server.url, samples=2), problems(2), rejection="until_correct")
    # Of each problem's two slots one was wrong: it alone is asked once more.
    assert len(questions(server)) == 6
    assert len({(row.id, row.sample) for row in stored()}) == 6
