"""The training data as it was used."""

from __future__ import annotations

import json

import pytest

import models
from compact_distill.answers import Verifier
from compact_distill.data.preview import ProblemSize, optimizer_steps, preview, used_rows
from compact_distill.method.encode import Encoder
from compact_distill.records import Instance, Rationale, Verdict

TEXTS = ["So 7.\nThe answer is 7.", "no statement", "long " * 200 + "\nThe answer is 8.", ""]


def used(*rationales):
    encoder = Encoder(models.byte_level_tokenizer(), max_length=100)
    instance = Instance("p", "Ann?", "7", rationales)
    with Verifier(workers=1) as verifier:
        encoded = encoder(instance)
        (row,) = used_rows([instance], [encoded], verifier)
    assert json.loads(json.dumps(row)) == row  # plain JSON
    return row, encoded


def test_a_line_tells_verdict_status_and_length_of_every_rationale():
    row, problem = used(*(Rationale("t", text, sample=k) for k, text in enumerate(TEXTS)))
    assert row["prompt_tokens"] == len(problem.prompt)
    assert [r["status"] for r in row["rationales"]] == ["ok", "unparsed", "over_length", "missing"]
    assert [r["tokens"] for r in row["rationales"]] == [len(problem.branches[0]), None, None, None]
    assert [r["answer"] for r in row["rationales"]] == ["7", None, "8", None]
    assert [r["verdict"] for r in row["rationales"]] == ["correct", "unparsed", "wrong", None]
    assert [r["sample"] for r in row["rationales"]] == [0, 1, 2, 3]
    assert [r["text"] for r in row["rationales"]] == TEXTS


def test_answers_that_were_inferred_are_counted_and_shown_apart():
    row, problem = used(Rationale("t", TEXTS[0]), Rationale("u", "So Ann has 7 coins."), Rationale("v", "Ann."))
    assert [r["answer_from"] for r in row["rationales"]] == ["stated", "inferred", None]
    assert [r["status"] for r in row["rationales"]] == ["ok", "ok", "no_answer"]
    train = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_train_epochs": 1}
    lengths = tuple(None if branch is None else len(branch) for branch in problem.branches)
    size = ProblemSize(problem.teachers, problem.statuses, problem.answers_from, len(problem.prompt), lengths)
    shown = preview([size], train, 100)
    assert [teacher.inferred for teacher in shown.teachers] == [0, 1, 0]
    table = [line.split() for line in str(shown).splitlines()]
    assert table[1][:5] == ["teacher", "rationales", "used", "inferred", "no_answer"]
    assert [line[:5] for line in table[2:5]] == [
        ["t", "1", "1", "0", "0"],
        ["u", "1", "1", "1", "0"],
        ["v", "1", "0", "0", "1"],
    ]


def test_what_the_data_says_in_numbers_is_kept_and_nothing_else_of_it():
    given = {"mqm": 10, "is_correct": True, "rater": "x", "broken": float("nan")}
    row, _ = used(Rationale("t", TEXTS[0], extra=given), Rationale("u", TEXTS[0]))
    assert row["rationales"][0]["numbers"] == {"mqm": 10.0}
    assert "numbers" not in row["rationales"][1]


def test_a_verdict_that_was_given_stays():
    row, _ = used(Rationale("t", TEXTS[0], verdict=Verdict.WRONG), Rationale("u", TEXTS[0], answer="9"))
    assert [r["verdict"] for r in row["rationales"]] == ["wrong", "wrong"]


@pytest.mark.parametrize(
    ("problems", "settings", "steps"),
    [(200, {}, 250), (201, {}, 255), (3, {}, 5), (201, {"max_steps": 7}, 7), (9, {"num_train_epochs": 0.5}, 2)],
)
def test_optimizer_steps_are_counted_as_transformers_does(problems, settings, steps):
    train = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "num_train_epochs": 5, **settings}
    assert optimizer_steps(problems, train) == steps
