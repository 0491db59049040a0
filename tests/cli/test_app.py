"""The command line: what each command prints, its exit codes, and that errors are messages, not tracebacks."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import SafetensorError

from compact_distill import pipeline
from compact_distill.cli.training import load
from compact_distill.errors import RunError

COMMANDS = (
    *("demo", "init", "validate", "generate", "verify", "teachers", "score", "train", "run"),
    *("diagnose", "study", "eval", "drift", "compare", "export", "report", "try", "doctor", "env"),
)


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


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")])
def test_commands_let_torch_take_large_pages_unless_told_otherwise(given, expected):
    code = (
        "import os, sys; from compact_distill.cli import app; sys.argv[1:] = ['init', '--help']\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{expected} False"  # set before torch is there, which asks once


def test_the_version_is_the_distributions(compact):
    assert re.fullmatch(r"compact-distill \d+\.\d+\.\d+\n", compact("--version").output)


# ---- init


def test_a_target_that_cannot_be_written_is_refused_before_any_work(compact, tmp_path, student, data):
    assert "does not exist; make it first" in compact("init", tmp_path / "no" / "my.yaml", code=2).stderr
    arguments = ("score", "--student", student, "--data", data, "--out")
    assert "is a folder; add a file name" in compact(*arguments, tmp_path, code=2).stderr


# ---- validate


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.max_steps", "--set must be KEY=VALUE"),
        ("lora.rank=3", "lora.rank is not a known key"),
        (".=3", "--set must be KEY=VALUE, got '.=3'"),
        ("text.prompt_template=Q: {question}", "error: --set text.prompt_template: must be valid YAML: mapping values"),
        ("lora={r: 1, r: 2}", "error: --set lora: key 'r' stands twice; keep one of them"),
    ],
)
def test_a_wrong_override_is_an_error(compact, config, setting, message):
    assert message in compact("validate", config, "--set", setting, code=2).stderr


# ---- demo


def test_a_seed_that_the_demos_runs_would_refuse_is_refused_before_it_starts(compact):
    assert "less than or equal to 4294967295" in compact("demo", "--seed", 2**32, code=2).stderr


# ---- score, train, run, export


# ---- errors and signals


def test_an_error_of_a_run_is_a_message_with_exit_code_2(compact, config, monkeypatch):
    def fail(config, *options, **more):
        raise RunError("the disk is full; free some space")

    monkeypatch.setattr(pipeline, "run", fail)
    assert compact("run", config, code=2).stderr == "error: the disk is full; free some space\n"


def test_a_bug_keeps_its_traceback(compact, config, monkeypatch):
    def fail(config, *options, **more):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline, "run", fail)
    with pytest.raises(ZeroDivisionError):
        compact("run", config)


def test_ctrl_c_ends_with_130_and_one_word(compact, config, monkeypatch):
    def stop(config, *options, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", stop)
    assert compact("run", config, code=130).stderr == "stopped\n"


# ---- env


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_a_full_disk_or_a_place_that_cannot_be_written_is_a_message(compact, config, monkeypatch, number):
    def fail(config, *options, **more):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(pipeline, "run", fail)
    result = compact("run", config, code=2)
    assert f"error: some/file: {os.strerror(number)}" in result.stderr


def test_a_full_disk_is_a_message_in_every_librarys_words(compact, config, monkeypatch):
    for number in (errno.ENOSPC, errno.EFBIG):
        words = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
        for error in (SafetensorError(words), RuntimeError(words)):
            monkeypatch.setattr(pipeline, "run", mock.Mock(side_effect=error))
            assert "error: the disk is full (" in compact("run", config, code=2).stderr
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 22979 vs 22932")  # torch.save's
    monkeypatch.setattr(pipeline, "run", mock.Mock(side_effect=error))
    assert "error: the disk is full (" in compact("run", config, code=2).stderr


def test_memory_that_is_not_there_is_a_message_that_says_what_to_lower(compact, config, monkeypatch):
    with pytest.raises(RuntimeError) as on_a_cpu:
        torch.empty(2**55)
    on_a_gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    for error in (on_a_cpu.value, on_a_gpu):
        monkeypatch.setattr(pipeline, "run", mock.Mock(side_effect=error))
        told = compact("run", config, code=2).stderr
        assert told.startswith("error: there is no memory for this (")
        assert "lower max_tokens_per_pass" in told


@pytest.mark.parametrize("sign", ["\x1b[2J", "\x9b31m", "\u202e", "\u2066", "\r"])
def test_a_word_that_no_command_knows_is_repeated_so_that_no_terminal_obeys_it(compact, sign):
    for arguments in (
        [f"no{sign}command"],
        [f"--no{sign}option"],
        ["run", "a.yaml", f"b{sign}.yaml"],
        ["run", f"--no{sign}option"],
        ["demo", "--seed", f"x{sign}"],
    ):
        result = compact(*arguments, code=2)
        assert "Usage: " in result.stderr
        assert sign[0] not in result.output + result.stderr


def test_an_output_that_is_an_input_is_refused(compact, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("{}")
    (tmp_path / "student").mkdir()
    for arguments in (
        ("export", data, data),
        ("score", "--student", tmp_path / "student", "--data", data, "--out", data),
        ("score", "--student", tmp_path / "student", "--data", data, "--out", tmp_path / "student" / "x.jsonl"),
        ("eval", tmp_path / "student", "--task", "gsm8k", "--out", tmp_path / "student" / "eval"),
        ("drift", tmp_path / "student", "other", "--out", tmp_path / "student"),
        ("compare", tmp_path / "student", tmp_path / "student", "--out", tmp_path / "student" / "base.json"),
    ):
        result = compact(*arguments, code=2)
        assert "must not be what is read" in result.stderr
    assert data.read_text() == "{}"


_ONE_NAME = "n" * 300
_ONE_PATH = "/".join(["d" * 200] * 25)  # 5,000 characters


@pytest.mark.parametrize("long", [_ONE_NAME, _ONE_PATH], ids=["name", "path"])
@pytest.mark.parametrize(
    "command",
    [
        "validate CONFIG --set student=LONG",
        "validate CONFIG --set rationales=LONG",
        "validate CONFIG --set output=LONG",
        "validate LONG",
        "train CONFIG --set student=LONG",
        "run CONFIG --set output=LONG",
        "score --student STUDENT --data DATA --out LONG",
        "score --student STUDENT --data LONG --out OUT",
        "score --student LONG --data DATA --out OUT",
        "export DATA LONG",
        "export LONG OUT",
        "eval STUDENT --task DATA --out LONG",
        "eval LONG --task gsm8k",
        "drift STUDENT LONG --retained DATA",
        "compare LONG STUDENT",
        "report LONG",
        "try LONG question",
        "init LONG",
    ],
)
def test_a_name_or_path_longer_than_the_system_allows_is_a_message(
    compact, config, data, student, tmp_path, monkeypatch, command, long
):
    monkeypatch.chdir(tmp_path)  # where a command writes that is told no other place
    given = {"CONFIG": config, "DATA": data, "STUDENT": student, "OUT": tmp_path / "out", "LONG": tmp_path / long}
    words = [re.sub("[A-Z]{3,}", lambda found: str(given[found[0]]), word) for word in command.split()]
    result = compact(*words, code=2)
    assert long[:20] in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "run.yaml"]  # nothing half made


def test_a_locale_that_lacks_a_sign_shows_another_and_no_traceback(tmp_path):
    program = "from compact_distill.cli import app, show; app.command('arrow')(lambda: show('0 % \u2192 1 %')); app()"
    plain = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run([sys.executable, "-c", program, "arrow"], env=plain, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "0 % ? 1 %\n", "")


def test_a_moved_run_folder_is_used_where_it_stands(tmp_path, capsys):
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "manifest.json").write_text("{}")
    path = tmp_path / "moved" / "config.yaml"
    path.write_text("student: x\nrationales: y\noutput: runs/old\n")
    assert load(path, []).output == str(tmp_path / "moved")
    assert "is used where it stands, not at runs/old as its file says; other relative paths" in capsys.readouterr().err
    assert load(path, ["output=runs/other"]).output == "runs/other"


def test_a_card_is_not_written_over_the_rows(compact, data, tmp_path):
    rows = tmp_path / "rows.jsonl"
    assert "must not be the file of the rows" in compact("export", data, rows, "--card", rows, code=2).stderr


def test_env_shows_versions_and_no_secret_path_or_name(compact, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    text = compact("env").stdout
    assert f"torch: {importlib.metadata.version('torch')}\n" in text
    assert re.search(r"^cores: \d+$", text, flags=re.M)
    for private in ("sk-very-secret", str(Path.home()), os.getcwd(), sys.prefix, os.uname().nodename + "\n"):
        assert private not in text


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
