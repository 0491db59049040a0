"""Rationales that exist already, and the lab's scripts, as teachers."""

from __future__ import annotations

import json

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
