"""From stores to training data, and what the stores' table says."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import compact_distill
from compact_distill.answers import Verifier
from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.data import load_instances
from compact_distill.errors import RunError
from compact_distill.records import Problem, Verdict
from compact_distill.teachers.answer import Golds, verify_store
from compact_distill.teachers.store import RowStatus, Store
from compact_distill.teachers.training_data import render, select, summarise
from teachers.conftest import teacher
from teachers.server import Server, says


def scripted(script):
    """A server whose answers are looked up by problem and number of the request for it."""
    asked: dict[str, int] = {}

    def behave(body, number):
        question = body["messages"][-1]["content"]
        if "problem" not in question:
            return says("ready")
        name = question.rpartition(" ")[2].rstrip("?")
        asked[name] = asked.get(name, -1) + 1
        given = script[name]
        given = given[min(asked[name], len(given) - 1)] if isinstance(given, list) else given
        return given if not isinstance(given, str) else says(given)

    return Server(behave)


def training(tmp_path, teachers, problems, **generation):
    listed = teachers if isinstance(teachers, list) else [teachers]
    out = tmp_path / "rationales.jsonl"
    selection = select(listed, GenerationConfig(**generation), problems, tmp_path / "stores", out)
    return selection, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_training_data_joins_all_teachers_on_the_problem(ask, problems, tmp_path):
    good, bad = "First. The answer is 4.", "First. The answer is 5."
    with scripted({"p0": good, "p1": bad}) as one, scripted({"p0": bad, "p1": good}) as two:
        teachers = [teacher(one.url, name="a"), teacher(two.url, name="b")]
        ask(teachers, problems(2))
    selection, rows = training(tmp_path, teachers, problems(2))
    assert [[r["teacher"] for r in row["rationales"]] for row in rows] == [["a", "b"]] * 2
    assert [[r["verdict"] for r in row["rationales"]] for row in rows] == [["correct", "wrong"], ["wrong", "correct"]]
    assert selection.statuses == {"a": {"ok": 2}, "b": {"ok": 2}}
    instances = load_instances(tmp_path / "rationales.jsonl")
    assert instances[1].rationales[0].answer == "5"
    assert instances[1].rationales[0].verdict is Verdict.WRONG
    _, rows = training(tmp_path, teachers, problems(2), rejection="correct_only")
    assert [[r["status"] for r in row["rationales"]] for row in rows] == [["ok", "rejected"], ["rejected", "ok"]]
    assert [[bool(r["text"]) for r in row["rationales"]] for row in rows] == [[True, False], [False, True]]


def test_rows_of_an_old_prompt_stay_out_of_the_training_data(ask, problems, tmp_path):
    with scripted({"p0": ["old: the answer is 4.", "new: the answer is 4."]}) as server:
        ask(teacher(server.url, prompt="Old {question}"), problems(1))
        ask(teacher(server.url), problems(1))
        _, rows = training(tmp_path, teacher(server.url), problems(1))
    assert [r["text"] for r in rows[0]["rationales"]] == ["new: the answer is 4."]


def test_until_correct_trains_on_the_attempt_that_was_right(ask, problems, tmp_path):
    with scripted({"p0": ["a. The answer is 5.", "b. The answer is 6.", "c. The answer is 4."]}) as server:
        ask(teacher(server.url), problems(1), rejection="until_correct")
        _, rows = training(tmp_path, teacher(server.url), problems(1), rejection="until_correct")
    assert [(r["sample"], r["text"]) for r in rows[0]["rationales"]] == [(0, "c. The answer is 4.")]


def test_what_cannot_be_used_is_written_with_its_status_and_without_text(ask, problems, tmp_path):
    script = {
        "p0": "The answer is 4.",
        "p1": says("cut", finish_reason="length"),
        "p2": says(None, refusal="no"),
        "p3": says(""),
        "p4": "no idea at all",
    }
    with scripted(script) as one, scripted(dict.fromkeys(script, "The answer is 4.")) as two:
        teachers = [teacher(one.url, name="a"), teacher(two.url, name="b")]
        ask(teachers, problems(5))
        selection, rows = training(tmp_path, teachers, problems(6))
    statuses = [row["rationales"][0]["status"] for row in rows]
    assert statuses == ["ok", "truncated", "refused", "empty", "no_answer"]
    assert all(not row["rationales"][0]["text"] for row in rows[1:])
    assert selection.statuses["a"]["missing"] == 1  # p5 was never asked
    assert (selection.problems, selection.left_out) == (5, 1)
    assert "1 of 6 problems have no rationale and are left out" in selection.notes()
    instances = load_instances(tmp_path / "rationales.jsonl")
    assert [bool(instance.rationales[0].text) for instance in instances] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("rationale", "text"),
    [("all", "two and two\nThe answer is 4."), ("reasoning", "two and two"), ("text", "The answer is 4.")],
)
def test_the_student_learns_thoughts_or_text_or_both(ask, problems, tmp_path, rationale, text):
    with scripted({"p0": "<think>two and two</think>The answer is 4."}) as server:
        ask(teacher(server.url), problems(1))
        _, rows = training(tmp_path, teacher(server.url, rationale=rationale), problems(1))
    assert rows[0]["rationales"][0]["text"] == text
    assert rows[0]["rationales"][0]["answer"] == "4"


def test_thoughts_that_a_teacher_does_not_have_are_missing(ask, problems, tmp_path):
    with scripted({"p0": "The answer is 4."}) as server:
        ask(teacher(server.url), problems(1))
        with pytest.raises(RunError, match="no problem has a rationale: t: 1 missing"):
            training(tmp_path, teacher(server.url, rationale="reasoning"), problems(1))


def test_a_problems_other_fields_are_kept(ask, tmp_path):
    asked = [Problem("p0", "problem p0", "4", {"level": 3})]
    with scripted({"p0": "The answer is 4."}) as server:
        ask(teacher(server.url), asked)
        _, rows = training(tmp_path, teacher(server.url), asked)
    assert rows[0]["level"] == 3


def test_what_no_json_holds_ends_no_run_after_it_was_paid_for(tmp_path):
    table = {"id": ["p0"], "question": ["problem p0"], "answer": ["4"], "difficulty": [float("nan")],
             "made": [datetime(2026, 1, 2, tzinfo=UTC)], "marks": [[1.5, float("inf")]]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "p.parquet")
    with scripted({"p0": "The answer is 4."}) as server:
        config = {"name": "t", "model": "m", "base_url": server.url}
        (instance,) = compact_distill.ask(str(tmp_path / "p.parquet"), [config], tmp_path / "pool")
    assert instance.extra["difficulty"] is None
    assert instance.extra["made"].startswith("2026-01-02 00:00:00")
    assert instance.extra["marks"] == [1.5, None]


def test_changed_gold_answers_change_the_verdicts_and_nothing_else(ask, problems, stored, tmp_path):
    with scripted({"p0": "The answer is 4.", "p1": "The answer is 4."}) as server:
        ask(teacher(server.url), problems(2))
        count = len(server.seen)
        with Store(tmp_path / "stores", "t") as store, Verifier() as verifier:
            assert verify_store(store, verifier, Golds(problems(2))) == 0
            assert verify_store(store, verifier, Golds([problems(1)[0], Problem("p1", "q", "5")])) == 1
            assert verify_store(store, verifier, Golds([]), everything=True) == 2
        assert len(server.seen) == count
    assert [(row.id, row.gold, row.verdict) for row in sorted(stored(), key=lambda r: r.id)] == [
        ("p0", "4", Verdict.CORRECT),
        ("p1", "5", Verdict.WRONG),
    ]


def test_verifying_again_reads_a_choice_as_it_was_read_on_arrival(ask, tmp_path, stored):
    asked = [Problem("p0", "Where are books? problem", "B", {"choices": {"A": "bank", "B": "library"}})]
    with Server(lambda body, number: says("Books are kept there.\nThe answer is library.")) as server:
        ask(teacher(server.url), asked)
    (before,) = stored()
    assert (before.answer, before.verdict) == ("B", Verdict.CORRECT)
    with Verifier() as verifier, Store(tmp_path / "stores", "t") as store:
        assert verify_store(store, verifier, Golds(asked), everything=True) == 1
        assert verify_store(store, verifier, Golds([]), everything=True) == 1  # nobody knows its choices here
        store.rewrite([replace(row, verdict=None) for row in store.rows()])
        assert verify_store(store, verifier, Golds([])) == 1
    assert stored() == [before]


def test_other_choices_read_the_answers_again_and_ask_nothing(ask, tmp_path, stored):
    choices = {"A": "bank", "B": "library"}
    others = {"A": "library", "B": "bank"}
    given = {"none": {}, "some": {"choices": choices}, "others": {"choices": others}}
    with Server(lambda body, number: says("Books are kept there.\nThe answer is library.")) as server:
        for name, answer, verdict in (
            ("none", "library", Verdict.UNPARSED), ("some", "B", Verdict.CORRECT), ("others", "A", Verdict.WRONG),
            ("none", "library", Verdict.UNPARSED),
        ):  # fmt: skip
            ask(teacher(server.url), [Problem("p0", "Where? problem", "B", given[name])])
            assert [(row.answer, row.verdict) for row in stored()] == [(answer, verdict)], name
        assert len(server.seen) == 2  # the preflight and one request


def test_verifying_again_reads_the_answer_by_todays_rules(row, tmp_path):
    with Store(tmp_path, "t") as store, Verifier() as verifier:
        store.append(row(id="p0", answer=None, status=RowStatus.UNPARSED, verdict=Verdict.UNPARSED))
        store.append(row(id="p1", answer="7", status=RowStatus.TRUNCATED, verdict=Verdict.WRONG))
        store.append(row(id="p2", text="nothing", answer="4"))
        verify_store(store, verifier, Golds([]), everything=True)
        found = {r.id: (r.status, r.verdict, r.answer) for r in store.rows()}
    assert found == {
        "p0": (RowStatus.OK, Verdict.CORRECT, "4"),
        "p1": (RowStatus.TRUNCATED, Verdict.CORRECT, "4"),
        "p2": (RowStatus.UNPARSED, Verdict.UNPARSED, None),
    }


def test_the_table_counts_rows_shares_lengths_costs_and_agreement(ask, problems, tmp_path):
    a = {"p0": "The answer is 4.", "p1": "The answer is 5.", "p2": "The answer is 4.", "p3": "who knows"}
    b = {"p0": "#### 4.0", "p1": "The answer is 4.", "p2": "The answer is 4.", "p3": "The answer is 4."}
    prices = {"prompt": 0.0, "completion": 1000.0}
    with scripted(a) as one, scripted(b) as two:
        teachers = [teacher(one.url, name="a", prices=prices), teacher(two.url, name="b")]
        ask([teachers[0].model_copy(update={"seed": 5})], problems(1))  # an old row
        ask(teachers, problems(4))
    missing = TeacherConfig(name="c", model="m", base_url="http://127.0.0.1:9/v1")
    table = summarise([*teachers, missing], GenerationConfig(), problems(4), tmp_path / "stores")
    first, second, third = table.teachers
    assert (first.rows, first.current, first.usable, first.verified, first.correct) == (5, 4, 3, 4, 2)
    assert first.correct_share == 0.5
    assert first.mean_tokens == 7
    assert first.cost == pytest.approx(5 * 7 * 1000 / 1e6)
    assert (second.rows, second.correct, second.cost) == (4, 4, None)
    assert (third.rows, third.correct_share, third.mean_tokens) == (0, None, None)
    # On p0 and p2 they agree, on p1 they do not, on p3 one said nothing.
    assert table.agreement == {("a", "b"): pytest.approx(2 / 3), ("a", "c"): None, ("b", "c"): None}
    lines = render(table).splitlines()
    assert lines[0].split() == [
        "teacher",
        "rows",
        "current",
        "usable",
        "correct",
        "tokens",
        "cost",
        "=",
        "a",
        "=",
        "b",
        "=",
        "c",
    ]
    assert lines[1].split() == ["a", "5", "4", "3", "50.0%", "7", "0.04", "66.7%", "-"]
    assert len({len(line) for line in lines[:3]}) == 1  # the last teacher does not agree with itself: an empty cell
