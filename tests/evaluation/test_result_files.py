"""Result files: read only where they are whole, and two students compared on the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from compact_distill.errors import RunError
from compact_distill.evaluation.harness import Subject, evaluate_task
from compact_distill.evaluation.result_files import compare_results, compare_students, read_result
from compact_distill.evaluation.statistics import bootstrap_mean, mcnemar
from compact_distill.evaluation.task import Task
from evaluation.test_harness import BASE, Script, right, rows_of


def two_students(tmp_path: Path) -> tuple[Path, Path]:
    base, student = tmp_path / "base", tmp_path / "student"
    evaluate_task(Script([right(0), "no", "no", "no", right(4)]), BASE, rows_of(5), base)
    replies = [right(0), right(1), right(2), right(3), "no"]
    evaluate_task(Script(replies), Subject("student", "s", "1"), rows_of(5), student, role="learned")
    return base, student


def test_two_students_are_compared_row_by_row(tmp_path):
    base, student = two_students(tmp_path)
    change = compare_results(base, student, "sums", seed=7)
    paired = bootstrap_mean([0, 1, 1, 1, -1], seed=7)
    assert (change["gained"], change["lost"]) == (3, 1)
    assert change["mcnemar_p"] == mcnemar(3, 1)
    assert (change["difference"], change["low"], change["high"]) == (paired.value, paired.low, paired.high)
    assert change["before"]["accuracy"] == 0.4
    assert change["role"] == "learned"


def test_what_cannot_be_compared_is_named_and_the_rest_is_compared(tmp_path):
    base, student = two_students(tmp_path)
    facts = Task(name="facts", version=1, data={"path": "x"})
    evaluate_task(Script([right(0)]), BASE, rows_of(1, facts), base)
    other = Task(name="more", version=1, data={"path": "x"})
    evaluate_task(Script([right(0)]), BASE, rows_of(1, other), base)
    evaluate_task(Script([right(0)] * 2), BASE, rows_of(2, other.changed(version=2)), student)
    document = compare_students(base, student)
    assert [change["task"] for change in document["changes"]] == ["sums"]
    assert [entry["task"] for entry in document["missing"]] == ["facts", "more"]
    assert "student has no finished result on facts" in document["missing"][0]["why"]
    assert "version, data differ" in document["missing"][1]["why"]


def test_shares_of_samples_have_no_mcnemar(tmp_path):
    task = Task(name="sums", version=1, data={"path": "x"}, samples=2, temperature=1.0)
    for name in ("base", "student"):
        evaluate_task(Script([right(0), "no", "no", right(1)]), BASE, rows_of(2, task), tmp_path / name)
    change = compare_results(tmp_path / "base", tmp_path / "student", "sums")
    assert (change["difference"], change["gained"], change["lost"], change["mcnemar_p"]) == (0, None, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ('{"format": 99}', "must have format 1, got 99"), ("[]", "cannot be read")],
)
def test_a_damaged_or_foreign_result_is_refused(tmp_path, text, message):
    path = tmp_path / "sums.json"
    path.write_text(text)
    with pytest.raises(RunError, match=message):
        read_result(path)
    # ... and evaluated again, not trusted
    assert evaluate_task(Script([right(0)]), BASE, rows_of(1), tmp_path)["result"]["accuracy"] == 1
