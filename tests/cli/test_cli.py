"""The command line: what each command prints, its exit codes, and that errors are messages, not tracebacks."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from compact_distill import pipeline
from compact_distill.cli import app
from compact_distill.cli.app import load
from compact_distill.config.file import load_config
from compact_distill.errors import RunError
from compact_distill.runs.folder import RunFolder
from models import byte_level_tokenizer, save_student, tiny_model

COMMANDS = (
    *("demo", "init", "validate", "generate", "verify", "teachers", "score", "train", "run"),
    *("diagnose", "study", "eval", "drift", "compare", "export", "report", "try", "doctor", "env"),
)


@pytest.fixture
def compact():
    def call(*arguments: object, code: int = 0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return call


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    model = tiny_model("llama", layers=1, dtype=torch.float32)
    return save_student(tmp_path_factory.mktemp("students") / "tiny", model, byte_level_tokenizer())


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [
        {
            "id": f"p{n}",
            "question": "1 + 1?",
            "answer": "2",
            "rationales": [{"teacher": "a", "text": "So 2.\nThe answer is 2."}, {"teacher": "b", "text": None}],
        }
        for n in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(student, data, tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    settings = f"student: {student}\nrationales: {data}\noutput: {tmp_path / 'run'}\n"
    path.write_text(settings + "train: {max_steps: 2, use_cpu: true}\n")
    return path


def test_help_names_every_command(compact):
    text = compact("--help").output
    assert re.findall(r"^  (\w+)  ", text, flags=re.M) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_with_an_example(compact, command):
    assert f"Example:\n    compact {command}" in compact(command, "--help").output


def test_help_imports_no_torch_and_no_transformers():
    code = (
        "import sys; from compact_distill.cli import app; sys.argv[1:] = ['--help']\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_the_version_is_the_distributions(compact):
    assert re.fullmatch(r"compact-distill \d+\.\d+\.\d+\n", compact("--version").output)


# ---- init


def test_init_writes_a_valid_configuration_once(compact, tmp_path):
    path = tmp_path / "my.yaml"
    assert f"compact validate {path}" in compact("init", path).output
    assert load_config(path).max_length == 2560
    path.write_text("mine")
    assert "exists already" in compact("init", path, code=2).stderr
    assert path.read_text() == "mine"
    compact("init", path, "--force")
    assert load_config(path)


def test_a_target_that_cannot_be_written_is_refused_before_any_work(compact, tmp_path, student, data):
    assert "does not exist; make it first" in compact("init", tmp_path / "no" / "my.yaml", code=2).stderr
    arguments = ("score", "--student", student, "--data", data, "--out")
    assert "is a folder; add a file name" in compact(*arguments, tmp_path, code=2).stderr


# ---- validate


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


@pytest.mark.parametrize(
    ("setting", "message"),
    [("train.max_steps", "--set must be KEY=VALUE"), ("lora.rank=3", "lora.rank is not a known key"), ("a=[", "YAML")],
)
def test_a_wrong_override_is_an_error(compact, config, setting, message):
    assert message in compact("validate", config, "--set", setting, code=2).stderr


def test_a_missing_configuration_says_how_to_make_one(compact, tmp_path):
    assert "compact init" in compact("run", tmp_path / "no.yaml", code=2).stderr


# ---- score, train, run, export


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


def test_train_and_run_print_where_the_result_is(compact, config, tmp_path):
    assert compact("train", config).stdout == f"student: {tmp_path / 'run' / 'student'}\n"
    second = compact("run", config)
    report = tmp_path / "run" / "report.html"
    assert second.stdout.endswith(f"report: {report}\n")
    assert "teachers: share of the weight" in second.stdout
    assert report.is_file()
    assert "train: done already" in second.stderr
    assert RunFolder.open(tmp_path / "run").manifest["finished"]


def test_export_writes_rows_for_other_trainers(compact, data, tmp_path):
    out = tmp_path / "sft.jsonl"
    result = compact("export", data, out, "--format", "messages")
    assert result.stdout == f"wrote {out}: 3 rows, left out: 3 missing, 0 unparsed\n"
    row = json.loads(out.read_text().splitlines()[0])
    assert row["messages"][0] == {"role": "user", "content": "1 + 1?"}
    assert "messages" in compact("export", data, out, "--format", "csv", code=2).stderr


# ---- errors and signals


def test_an_error_of_a_run_is_a_message_with_exit_code_2(compact, config, monkeypatch):
    def fail(config, *options):
        raise RunError("the disk is full; free some space")

    monkeypatch.setattr(pipeline, "run", fail)
    assert compact("run", config, code=2).stderr == "error: the disk is full; free some space\n"


def test_a_bug_keeps_its_traceback(compact, config, monkeypatch):
    def fail(config, *options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline, "run", fail)
    with pytest.raises(ZeroDivisionError):
        compact("run", config)


def test_ctrl_c_ends_with_130_and_one_word(compact, config, monkeypatch):
    def stop(config, *options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", stop)
    assert compact("run", config, code=130).stderr == "stopped\n"


# ---- env


def test_env_shows_versions_and_no_secret_path_or_name(compact, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    text = compact("env").stdout
    assert f"torch: {importlib.metadata.version('torch')}\n" in text
    assert re.search(r"^cores: \d+$", text, flags=re.M)
    for private in ("sk-very-secret", str(Path.home()), os.getcwd(), sys.prefix, os.uname().nodename + "\n"):
        assert private not in text


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_a_full_disk_or_a_place_that_cannot_be_written_is_a_message(compact, config, monkeypatch, number):
    def fail(config, *options):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(pipeline, "run", fail)
    result = compact("run", config, code=2)
    assert f"error: some/file: {os.strerror(number)}" in result.stderr


def test_an_output_that_is_an_input_is_refused(compact, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("{}")
    (tmp_path / "student").mkdir()
    for arguments in (
        ("export", data, data),
        ("score", "--student", tmp_path / "student", "--data", data, "--out", data),
        ("score", "--student", tmp_path / "student", "--data", data, "--out", tmp_path / "student" / "x.jsonl"),
    ):
        result = compact(*arguments, code=2)
        assert "must not be what is read" in result.stderr
    assert data.read_text() == "{}"


def test_a_moved_run_folder_is_used_where_it_stands(tmp_path, capsys):
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "manifest.json").write_text("{}")
    path = tmp_path / "moved" / "config.yaml"
    path.write_text("student: x\nrationales: y\noutput: runs/old\n")
    assert load(path, []).output == str(tmp_path / "moved")
    assert "has been moved; it is used where it stands, not at runs/old" in capsys.readouterr().err
    assert load(path, ["output=runs/other"]).output == "runs/other"


def test_a_files_own_errors_are_told_before_the_hub_is_asked_for_the_student(compact, config, monkeypatch):
    config.write_text(config.read_text() + "\nconsistancy: 0.1\n")

    def ask_the_hub(run_config):
        print("asking the hub", file=sys.stderr)
        return ["student: no such model"]

    monkeypatch.setattr(pipeline, "validate_run", ask_the_hub)
    said = compact("validate", config, code=2).stderr
    places = [said.index(text) for text in ("did you mean 'consistency'", "asking the hub", "no such model")]
    assert places == sorted(places)


def test_the_doctor_prints_a_table_and_env_names_its_last_result(compact, monkeypatch, tmp_path):
    from compact_distill.method import doctor
    from compact_distill.method.doctor import AGREES, DIFFERS, Finding

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "doctor: not run; try: compact doctor\n" in compact("env").stdout
    found = [Finding("loop", "fp32", AGREES, 1e-7, 2e-7, 0.1)]
    monkeypatch.setattr(doctor, "examine", lambda device, student, seconds: iter(found))
    said = compact("doctor", "--device", "cpu").stdout
    assert "1 agrees; training uses flash (full attention, fp32), loop (sliding windows, fp32)" in said
    assert re.search(r"doctor: 1 agrees; training uses .*\(\d{4}-\d\d-\d\d, CPU, torch ", compact("env").stdout)
    found.append(Finding("flash", "fp32", DIFFERS, 0.5, 0.5, 0.1, "a gradient"))
    assert "differs" in compact("doctor", "--device", "cpu", code=1).stdout
    assert "doctor: 1 agrees, 1 differs" in compact("env").stdout
    assert "--device must be auto, cpu or cuda, got 'tpu'" in compact("doctor", "--device", "tpu", code=2).stderr
    (tmp_path / "compact-distill" / "doctor.json").write_text("[]")
    assert "doctor: not run" in compact("env").stdout
