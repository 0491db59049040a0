"""Result files: read only where they are whole, and two students compared on the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from compact_distill.errors import RunError
from compact_distill.evaluation.harness import Subject, evaluate_task
from compact_distill.evaluation.result_files import (
    compare_results,
    compare_students,
    damaged_results,
    describe_changes,
    read_result,
    write_result,
)
from compact_distill.evaluation.task import Task
from compact_distill.runs.files import is_aside
from compact_distill.statistics import bootstrap_mean, mcnemar
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


def test_where_no_row_was_gained_or_lost_the_change_is_no_certainty_of_none(tmp_path):
    for name in ("base", "student"):
        evaluate_task(Script([right(0), "no", right(2), "no"]), BASE, rows_of(4), tmp_path / name)
    change = compare_results(tmp_path / "base", tmp_path / "student", "sums")
    assert (change["difference"], change["gained"], change["lost"], change["mcnemar_p"]) == (0, 0, 0, 1)
    limit = 1.959964**2 / (4 + 1.959964**2)  # Wilson's upper limit of a share of 0 of 4, in either direction
    assert (change["low"], change["high"]) == (pytest.approx(-limit), pytest.approx(limit))
    (line,) = describe_changes({"changes": [change], "missing": []})
    assert "+0.0 points (-49.0 to +49.0)" in line


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


# ---- damage


def flipped(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("name", ["sums.json", "sums.rows.jsonl"])
def test_a_result_that_was_flipped_or_cut_is_noticed_wherever_it_is_read(tmp_path, name):
    base, student = two_students(tmp_path)
    assert damaged_results(tmp_path) == []
    for damage in ("flip", "cut"):
        whole = (student / name).read_bytes()
        if damage == "flip":
            flipped(
                student / name,
                '"p1"' if "rows" in name else '"accuracy": 0.8',
                '"p7"' if "rows" in name else '"accuracy": 0.9',
            )
        else:
            (student / name).write_bytes(whole[: len(whole) // 2])
        [message] = damaged_results(tmp_path)
        assert name in message
        with pytest.raises(RunError):
            compare_results(base, student, "sums")
        (student / name).write_bytes(whole)
    assert damaged_results(tmp_path) == []


def test_a_comparison_and_a_drift_that_were_flipped_are_noticed(tmp_path):
    for name in ("changes.json", "drift.json"):
        write_result(tmp_path / name, {"format": 1, "changes": [0.5]})
        assert damaged_results(tmp_path) == []
        flipped(tmp_path / name, "0.5", "0.7")
        [message] = damaged_results(tmp_path)
        assert f"{name} is not as it was written" in message
        (tmp_path / name).unlink()


def test_a_comparison_that_is_there_already_is_moved_aside(tmp_path):
    out = tmp_path / "compared.json"
    out.write_text("mine")
    write_result(out, {"format": 1, "changes": []}, keep=True)
    write_result(out, {"format": 1, "changes": []}, keep=True)  # the same again
    assert [path.read_text() for path in tmp_path.glob("compared.json.*")] == ["mine"]


def test_an_earlier_result_is_moved_aside_and_told(tmp_path, capsys):
    first = evaluate_task(Script([right(0), right(1)]), BASE, rows_of(2), tmp_path)
    evaluate_task(Script([right(0)]), BASE, rows_of(1), tmp_path)
    aside = {path.name.rpartition(".")[0]: path for path in tmp_path.iterdir() if is_aside(path)}
    assert set(aside) == {"sums.json", "sums.rows.jsonl"}
    assert read_result(aside["sums.json"]) == first
    said = capsys.readouterr().err
    assert aside["sums.json"].name in said
    assert "rename it to take it back" in said
