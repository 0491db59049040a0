"""Commands that read a student, a run or its data, and train nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_export_writes_rows_for_other_trainers(compact, data, tmp_path):
    out = tmp_path / "sft.jsonl"
    result = compact("export", data, out, "--format", "messages")
    assert result.stdout == f"wrote {out}: 3 rows, left out: 3 missing, 0 unparsed\n"
    row = json.loads(out.read_text().splitlines()[0])
    assert row["messages"][0] == {"role": "user", "content": "1 + 1?"}
    assert "messages" in compact("export", data, out, "--format", "csv", code=2).stderr


@pytest.mark.parametrize(
    ("is_run", "options", "words"),
    [
        (True, ("--base-url", "http://localhost:1/v1"), "--base-url is for a student"),
        (True, ("--api-key-env", "KEY"), "--api-key-env is for a student"),
        (True, ("--out", "results"), "--out is for a student"),
        (False, ("--checkpoint", "5"), "--checkpoint needs a run folder"),
        (False, ("--verify",), "--verify needs a run folder"),
        (False, ("--api-key-env", "KEY"), "give --base-url too"),
    ],
)
def test_an_option_of_eval_that_would_do_nothing_is_refused(compact, tmp_path, is_run, options, words):
    target = tmp_path / "target"
    target.mkdir()
    if is_run:
        (target / "manifest.json").write_text("{}")
    assert words in compact("eval", target, *options, code=2).output.replace("\n", " ")
    assert not Path("eval").exists()


def test_a_student_that_is_no_folder_and_cannot_be_fetched_is_a_message(compact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench.jsonl").write_text('{"id": "1", "question": "1 + 1?", "answer": "2"}\n')
    told = compact("eval", "nobody/nothing", "--task", tmp_path / "bench.jsonl", code=2).stderr
    assert told.startswith("error: student 'nobody/nothing', which is no folder here, cannot be read (")
    assert not (tmp_path / "eval").exists()


def test_the_rows_of_a_run_are_not_exported_and_what_can_be_is_said(compact, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    told = compact("export", tmp_path / "run", tmp_path / "rows.jsonl", code=2).stderr
    assert told == f"error: {tmp_path / 'run'} is a run; name the data that it read, or add --merged for its student\n"


def test_a_folder_below_a_tilde_that_no_shell_expanded_is_refused(compact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = compact("drift", "a", "b", "--out", "~/drift", code=2).stderr
    assert told == "error: ~/drift starts with ~, which the shell has not expanded; write the folder out\n"


def test_a_card_of_rows_is_refused_beside_a_merged_model(compact, tmp_path):
    out = compact("export", tmp_path, tmp_path / "out", "--merged", "--card", "card.md", code=2).output
    assert "describes rows, but --merged writes a model" in out.replace("\n", " ")
