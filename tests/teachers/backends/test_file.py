"""Rationales that exist already, and the lab's scripts, as teachers."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest

from compact_distill.config.teachers import TeacherConfig
from compact_distill.errors import ConfigError, RunError
from compact_distill.lab import arithmetic, pool
from compact_distill.records import Verdict
from compact_distill.teachers.protocol import FaultKind


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TeacherConfig(name="t", backend="jsonl", path=str(path), samples=2)


def test_rationales_of_a_file_are_stored_and_verified_like_any_other(ask, problems, stored, tmp_path):
    rows = [
        {"id": "p0", "text": "The answer is 4."},
        {"id": "p0", "text": "The answer is 5.", "sample": 1},
        {"id": "p1", "text": "So <b>4</b>.", "reasoning": "The answer is 4?", "teacher": "t"},
        {"id": "p2", "text": "of another", "teacher": "u"},
        {"id": "unknown", "text": "of no problem"},
    ]
    outcome = ask(write(tmp_path / "old.jsonl", rows), problems(3))
    found = {(row.id, row.sample): row for row in stored()}
    assert found.keys() == {("p0", 0), ("p0", 1), ("p1", 0)}
    assert found["p0", 0].verdict is Verdict.CORRECT
    assert found["p0", 1].verdict is Verdict.WRONG
    assert found["p1", 0].reasoning == "The answer is 4?"
    # What the file lacks is counted, and is no error of the run.
    assert outcome[0].failed == {FaultKind.ABSENT: 3}
    assert outcome[0].unanswered == 0


def test_rows_follow_the_rules_of_training_data(ask, problems, stored, tmp_path):
    rows = [
        {"id": 0, "text": "The answer is 4."},
        {"id": "1", "text": None},
        {"id": "2", "text": "The answer is 4", "status": "truncated"},
        {"id": "3", "text": "", "reasoning": "The answer is 4."},
        {"id": "4", "text": " ", "model": None},
    ]
    config = write(tmp_path / "old.jsonl", rows)
    (tmp_path / "old.jsonl.gz").write_bytes(gzip.compress((tmp_path / "old.jsonl").read_bytes()))
    asked = [replace(problem, id=problem.id[1:]) for problem in problems(5)]
    for path in (config.path, config.path + ".gz"):
        (counts,) = ask(config.model_copy(update={"name": path[-2:], "path": path, "samples": 1}), asked)
        assert counts.failed == {FaultKind.ABSENT: 3}
        assert {row.id: row.answer for row in stored(path[-2:])} == {"0": "4", "3": "4"}


def test_a_row_of_the_wrong_kind_is_named_with_field_and_value(ask, problems, tmp_path):
    rows = [{"id": "p0", "text": 3}, {"id": 1.5, "text": "x"}, {"id": "p1", "text": "x", "reasoning": ["a"]},
            {"id": "p2", "text": "x", "model": {}}, {"id": "p3", "text": "x", "sample": "1"}]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        ask(write(tmp_path / "old.jsonl", rows), problems(1))
    fields = ("text", "id", "reasoning", "model", "sample")
    for line, (problem, field) in enumerate(zip(caught.value.problems, fields, strict=True), start=1):
        assert problem.startswith("teacher t: ")
        assert f"line {line}: {field} must be" in problem
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{}" * 100)[:-9])
    with pytest.raises(ConfigError, match=r"teacher t: .*cut.gz must be readable"):
        ask(TeacherConfig(name="t", backend="jsonl", path=str(tmp_path / "cut.gz")), problems(1))


def test_a_changed_file_is_read_again(ask, problems, stored, tmp_path):
    config = write(tmp_path / "old.jsonl", [{"id": "p0", "text": "The answer is 5."}])
    ask(config, problems(1))
    write(tmp_path / "old.jsonl", [{"id": "p0", "text": "The answer is 4."}])
    ask(config, problems(1))
    assert [row.answer for row in stored()] == ["5", "4"]


def test_every_wrong_row_of_a_file_is_named_at_once(ask, problems, tmp_path):
    path = tmp_path / "old.jsonl"
    path.write_text('{"id": "p0", "text": 3}\nno JSON\n{"id": "p1", "text": "x"}\n{"id": "p1", "text": "y"}\n[]\n')
    with pytest.raises(ConfigError) as caught:
        ask(TeacherConfig(name="t", backend="jsonl", path=str(path)), problems(1))
    lines = [problem.split(", line ")[1].split(":")[0] for problem in caught.value.problems]
    assert lines == ["1", "2", "4", "5"]


def test_a_missing_file_says_which_teacher_needs_it(ask, problems, tmp_path):
    with pytest.raises(ConfigError, match=r"teacher t: .*gone.jsonl must be readable"):
        ask(TeacherConfig(name="t", backend="jsonl", path=str(tmp_path / "gone.jsonl")), problems(1))


def test_the_labs_scripts_write_for_the_labs_problems(ask, stored):
    asked = arithmetic("train", 12, seed=3)
    names = ("terse", "verbose", "erring", "foreign")
    ask([TeacherConfig(name=name, backend="lab", model=name) for name in names], asked)
    scripts = {script.name: script for script in pool()}
    for name in names:
        rows = {row.id: row for row in stored(name)}
        assert rows.keys() == {p.id for p in asked}
        assert all(rows[p.id].text == scripts[name].write(p).strip() for p in asked)
        if name != "erring":
            assert {row.verdict for row in rows.values()} == {Verdict.CORRECT}
    assert {row.verdict for row in stored("erring")} == {Verdict.CORRECT, Verdict.WRONG}


def test_the_lab_knows_no_other_problems_and_scripts(ask, problems):
    lab = {"name": "t", "backend": "lab"}
    with pytest.raises(ConfigError, match="model must be one of terse, verbose, erring, foreign with backend lab"):
        ask(TeacherConfig(**lab, model="wordy"), problems(1))
    with pytest.raises(RunError, match="2 of 2 rationales got no answer"):
        ask(TeacherConfig(**lab, model="terse"), problems(2))
