"""Commands that lead to a student: what each prints, and every error at once."""

from __future__ import annotations

import json
import re
import sys

import pytest

from compact_distill import pipeline
from compact_distill.config.file import load_config
from compact_distill.report import read as reading
from compact_distill.runs.folder import RunFolder


def test_init_writes_a_valid_configuration_once(compact, tmp_path):
    path = tmp_path / "my.yaml"
    assert f"compact validate {path}" in compact("init", path).output
    assert load_config(path).max_length == 2560
    path.write_text("mine")
    assert "exists already" in compact("init", path, code=2).stderr
    assert path.read_text() == "mine"
    compact("init", path, "--force")
    assert load_config(path)


def test_validate_counts_with_dry_run(compact, config):
    assert compact("validate", config).stdout == f"{config} is valid\n"
    lines = compact("validate", config, "--dry-run").stdout.splitlines()
    assert lines[1] == "problems: 3"
    assert lines[2].split()[:5] == ["teacher", "rationales", "used", "inferred", "missing"]
    assert lines[3].split()[:5] == ["a", "3", "3", "0", "0"]
    assert lines[4].split() == ["b", "3", "0", "0", "3", "-", "-", "0"]
    assert lines[-1] == "optimizer steps: 2 in 5 epochs"


def test_validate_lists_every_error_and_counts_them(compact, config, data):
    data.write_text("{broken\n")
    result = compact("validate", config, "--set", "student=/nowhere/at/all", code=2)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: student folder /nowhere/at/all does not exist")
    assert "line 1: broken JSON" in lines[1]
    assert lines[2] == "2 errors; nothing was done"


def test_errors_of_configuration_data_and_student_come_together(compact, config, data, student):
    data.write_text("{broken\n")
    config.write_text(config.read_text() + "consistency: -1\nlorra: {r: 2}\n")
    result = compact("validate", config, "--set", f"student={student.parent}", code=2)
    for part in ("consistency must be >= 0", "lorra is not a known key", "broken JSON", "holds no model"):
        assert result.stderr.count(part) == 1
    lines = result.stderr.splitlines()
    assert lines[-1] == f"{len(lines) - 1} errors; nothing was done"


def test_a_missing_configuration_says_how_to_make_one(compact, tmp_path):
    assert "compact init" in compact("run", tmp_path / "no.yaml", code=2).stderr


def test_score_uses_the_configurations_settings(compact, config, student, data, tmp_path):
    out = tmp_path / "scores.jsonl"
    arguments = ("score", "--student", student, "--data", data, "--out", out)
    assert compact(*arguments).stdout == f"wrote {out}: 3 problems; rationales: 3 missing, 3 ok\n"
    plain = json.loads(out.read_text().splitlines()[0])
    assert plain["weights"] == [1, 0]
    assert plain["adaptability"][0] is not None
    assert plain["adaptability"][1] is None
    config.write_text("compatibility: {estimator: lens}\n")  # student and data come from the arguments
    compact(*arguments, "--config", config)
    other = json.loads(out.read_text().splitlines()[0])
    assert other["adaptability"] != plain["adaptability"]
    assert other["difficulty"] == plain["difficulty"]
    compact(*arguments, "--set", "compatibility.estimator=lens")
    assert json.loads(out.read_text().splitlines()[0]) == other


def test_train_and_run_print_where_the_result_is(compact, config, tmp_path, monkeypatch):
    assert compact("train", config).stdout == f"student: {tmp_path / 'run' / 'student'}\n"
    read, rows = [], reading.read_jsonl
    monkeypatch.setattr(reading, "read_jsonl", lambda path, **how: read.append(path) or rows(path, **how))
    second = compact("run", config)
    assert sorted({path.name for path in read}) == ["data.jsonl", "scores.jsonl", "training_log.jsonl"]
    assert len(read) == len(set(read)), "page, card and summary share one reading of the run"
    report = tmp_path / "run" / "report.html"
    assert second.stdout.endswith(f"report: {report}\n")
    assert "teachers: share of the weight" in second.stdout
    assert report.is_file()
    assert "train: done already" in second.stderr
    assert RunFolder.open(tmp_path / "run").manifest["finished"]


def test_a_slip_in_set_costs_no_student_and_the_printed_command_takes_it_back(compact, config, tmp_path, monkeypatch):
    compact("train", config)
    weights = tmp_path / "run" / "student" / "adapter_model.safetensors"
    old = weights.read_bytes()
    assert "train.max_stepz" in compact("train", config, "--set", "train.max_stepz=1", code=2).stderr
    assert "max_steps" in compact("train", config, "--set", "train.max_steps=one", code=2).stderr
    assert weights.read_bytes() == old
    said = compact("train", config, "--set", "train.learning_rate=0.02").stderr
    new = weights.read_bytes()
    assert new != old
    assert "other inputs than before (train.learning_rate)" in said
    command = re.search(r"To take it back: compact (run \S+ --set \S+)", said)[1]
    monkeypatch.setattr(pipeline, "train_student", None)  # nothing is trained for it
    said = compact(*command.split()).stderr
    assert "taken back" in said
    assert weights.read_bytes() == old
    (aside,) = (tmp_path / "run").glob("before.*")
    assert (aside / "student" / "adapter_model.safetensors").read_bytes() == new


def test_a_file_that_a_run_writes_is_no_target_of_any_command(compact, config, student, data, tmp_path):
    compact("train", config)
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for arguments in (
        ("score", "--student", student, "--data", data, "--out", run / "scores.jsonl"),
        ("export", data, run / "data.jsonl"),
        ("export", data, tmp_path / "rows.jsonl", "--card", run / "student" / "README.md"),
        ("export", run, run / "student" / "whole", "--merged"),
        ("eval", student, "--task", data, "--out", run / "eval"),
        ("drift", student, student, "--retained", data, "--out", run / "student"),
        ("compare", tmp_path, tmp_path, "--out", run / "manifest.json"),
        ("diagnose", config, "--out", run / "eval" / "diagnosis"),
        ("init", run / "config.yaml", "--force"),
        ("report", run, "--out", run / "scores.jsonl"),
    ):
        assert "must not be" in compact(*arguments, code=2).stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("harm", "options"), [("cut", []), ("flip", ["--verify"]), ("delete", [])])
def test_the_report_of_a_damaged_run_is_written_and_says_what_is_damaged(compact, config, tmp_path, harm, options):
    compact("train", config)
    path = tmp_path / "run" / "student" / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] if harm == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    if harm == "delete":
        path.unlink()
    result = compact("report", tmp_path / "run", *options)
    assert f"{tmp_path / 'run'}: student/adapter_model.safetensors " in result.stderr
    assert "`compact run` goes on with training from its last complete checkpoint" in result.stderr
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_files_own_errors_are_told_before_the_hub_is_asked_for_the_student(compact, config, monkeypatch):
    config.write_text(config.read_text() + "\nconsistancy: 0.1\n")

    def ask_the_hub(run_config):
        print("asking the hub", file=sys.stderr)
        return ["student: no such model"]

    monkeypatch.setattr(pipeline, "validate_run", ask_the_hub)
    said = compact("validate", config, code=2).stderr
    places = [said.index(text) for text in ("did you mean 'consistency'", "asking the hub", "no such model")]
    assert places == sorted(places)


def test_diagnose_writes_into_nothing_that_it_reads(compact, config, student, data):
    for out in (student, student / "diagnosis", data):
        assert "must not be what is read" in compact("diagnose", config, "--out", out, code=2).stderr
    assert "but is a file" in compact("diagnose", config, "--out", config, code=2).stderr


def test_what_a_diagnosis_prints_of_the_data_cannot_control_the_terminal(compact, config, monkeypatch):
    from compact_distill.study import diagnose

    monkeypatch.setattr(diagnose, "diagnose", lambda *_: {})
    monkeypatch.setattr(diagnose, "describe", lambda _: ["teacher a\x1b[2J\u200eb"])
    monkeypatch.setattr(diagnose, "write_diagnosis", lambda _, out: out / "p\x1b.html")
    said = compact("diagnose", config).stdout
    assert "teacher a\ufffd[2J\ufffdb" in said
    assert "\x1b" not in said
