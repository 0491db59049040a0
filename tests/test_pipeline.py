"""The pipeline: what it refuses, what it writes, what it redoes, and that a stopped run ends like one that was not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compact_distill import pipeline
from compact_distill.config.file import config_from, dump_config, load_config
from compact_distill.config.models import RunConfig
from compact_distill.data import load_instances
from compact_distill.errors import InputError, RunError, StudentError
from compact_distill.evaluation import examine as examine_module
from compact_distill.method.encode import Encoder
from compact_distill.method.passes import ProblemDataset
from compact_distill.method.score import score
from compact_distill.records import RationaleStatus
from compact_distill.report import read_run, write_report
from compact_distill.runs.folder import RunFolder
from compact_distill.students.load import load_student, load_tokenizer
from compact_distill.training import prepare as prepare_module
from compact_distill.training.trainer import CompactTrainer
from models import byte_level_tokenizer, save_student, tiny_model

OLD, NEW = "a" * 40, "b" * 40  # commits of the fixture `hub`


def problem(number: int, *texts: str | None) -> dict:
    rationales = [{"teacher": f"t{k}", "text": text} for k, text in enumerate(texts)]
    return {
        "id": f"p{number}",
        "question": f"What is {number} + 1?",
        "answer": str(number + 1),
        "rationales": rationales,
    }


def write_data(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    model = tiny_model("qwen2", layers=2, dtype=torch.float32, seed=1)
    return save_student(tmp_path_factory.mktemp("students") / "tiny", model, byte_level_tokenizer())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rows = [
        problem(n, f"First, we add 1 to {n}. The answer is {n + 1}.", f"So {n} + 1 = {n}.\nThe answer is {n}.")
        for n in range(6)
    ]
    return write_data(tmp_path_factory.mktemp("data") / "data.jsonl", rows)


@pytest.fixture
def configure(student, data, tmp_path):
    """A configuration of six problems, two epochs, two problems a step: three steps an epoch."""

    def make(**changes) -> RunConfig:
        train = {"learning_rate": 0.01, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "use_cpu": True}
        train["per_device_train_batch_size"] = 1
        settings = {"student": str(student), "rationales": str(data), "output": str(tmp_path / "run")}
        settings |= {"lora": {"r": 2}, **changes}
        return config_from({**settings, "train": {**train, **settings.get("train", {})}})

    return make


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.student_path / "adapter_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


# ---- running


def test_a_run_writes_its_folder_and_a_second_run_does_nothing(configure, capsys, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-very-secret")
    config = configure()
    folder = pipeline.run(config)

    assert RunFolder.open(folder.path).manifest == folder.manifest
    made_of = folder.manifest
    assert made_of["finished"]
    assert made_of["seeds"]["seed"] == 42
    assert made_of["teachers"] == ["t0", "t1"]
    assert made_of["versions"]["torch"] == importlib.metadata.version("torch")
    assert made_of["student"]["sha256"]
    assert list(made_of["data"]["files"]) == list(config.rationales)
    summary = folder.stage_summary("train")
    assert summary["steps"] == 6
    assert summary["statuses"] == {"ok": 12}
    assert folder.config_path.read_text() == dump_config(config)

    rows = list(folder.read_scores())
    assert [row["step"] for row in rows] == [step for step in range(6) for _ in range(2)]
    for epoch in (0, 1):  # every problem once an epoch
        assert sorted(row["id"] for row in rows[6 * epoch : 6 * epoch + 6]) == [f"p{n}" for n in range(6)]
    assert all(sum(row["weights"]) == pytest.approx(1) for row in rows)

    model, _ = load_student(folder.student_path)  # the folder is a student of its own
    assert model.peft_config

    before = state_of(folder.path)
    assert "sk-very-secret" not in repr(before)
    capsys.readouterr()
    assert pipeline.run(config).path == folder.path
    assert state_of(folder.path) == before
    assert "train: done already" in capsys.readouterr().err


def test_a_run_writes_what_the_report_reads(configure):
    config = configure()
    folder = pipeline.run(config)
    run = read_run(folder.path)
    assert [line for line in run.missing if not line.startswith("eval/")] == []
    verdicts = {rationale.verdict for problem in run.problems.values() for rationale in problem.rationales.values()}
    assert verdicts == {"correct", "wrong"}
    logged = [row for row in run.log if "loss" in row]
    assert [row["step"] for row in logged] == list(range(1, folder.stage_summary("train")["steps"] + 1))
    assert all(row["problems_per_second"] > 0 and "weight/t0" in row for row in logged)
    gains = [json.loads(line) for line in folder.gains_path.read_text().splitlines()]
    # Two epochs pay for reading a tenth of the problems before and after; one at least.
    assert [(g["student"], g["id"]) for g in gains] == [("before", "p0"), ("after", "p0")]
    assert gains[0]["rationales"] != gains[1]["rationales"]
    # After training, net gains of the saved student are what `score` reads with it.
    model, tokenizer = load_student(folder.student_path)
    net = config.compatibility.model_copy(update={"gain": "net"})
    for row, line in zip(score(model, tokenizer, load_instances(config.rationales)[:1], net), gains[1:], strict=True):
        for expected, rationale in zip(row.adaptability, line["rationales"], strict=True):
            assert sum(rationale["gains"]) == pytest.approx(expected, abs=1e-4 * len(rationale["gains"]) + 1e-4)
    assert write_report([folder.path]).is_file()


@pytest.fixture
def trains(configure, monkeypatch):
    """Whether a run with these changes would train, after one with none."""
    trained = []
    monkeypatch.setattr(pipeline, "train_student", lambda *args: trained.append(1) or {})
    monkeypatch.setattr(pipeline, "_data_rows", lambda prepared: [])

    def run(**changes) -> bool:
        trained.clear()
        pipeline.train(configure(**{"report": {"gains": False}, **changes}))
        return bool(trained)

    assert run()
    return run


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"logging_steps": 5, "save_total_limit": 1}},
        {"train": {"dataloader_num_workers": 2}},
        {"train": {"gradient_checkpointing": False}},
        {"train": {"gradient_checkpointing": True}},
        {"train": {"per_device_eval_batch_size": 16}},
        {"train": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}},  # as many problems a step
        {"train": {"weight_decay": 0.0}},  # the default, written out
        {"train": {"report_to": "none", "run_name": "second"}},
        {"max_tokens_per_pass": 8000},
        {"eval": {"batch_tokens": 100}},
        {"report": {"gains": False}},
    ],
)
def test_what_changes_no_result_trains_nothing_again(trains, changes):
    assert not trains(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"compatibility": {"temperature": 2.0}},
        {"weighting": "equal"},
        {"seed": 1},
        {"train": {"learning_rate": 0.02}},
        {"train": {"weight_decay": 0.1}},
        {"train": {"gradient_accumulation_steps": 3}},
        {"train": {"num_train_epochs": 1}},
        {"lora": {"r": 4}},
        {"max_length": 300},
        {"max_tokens_per_pass": 300},  # rationales that are longer drop out
        {"text": {"answer_template": "So {answer}."}},
        {"answers": {"infer": False}},
    ],
)
def test_what_changes_the_result_trains_again(trains, changes):
    assert trains(**changes)


def test_other_names_of_the_same_inputs_train_nothing_again(trains, student, data, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert not trains(rationales=str(write_data(tmp_path / "same.jsonl", [{"note": "x", **row} for row in rows])))
    monkeypatch.chdir(student.parent)
    for name in (student.name, f"./{student.name}", f"{student.name}/"):
        assert not trains(student=name)
    shutil.copytree(student, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("about it")
    assert not trains(student=str(tmp_path / "copy"))
    verdicts = [{**row, "rationales": [{**r, "verdict": "correct"} for r in row["rationales"]]} for row in rows]
    assert not trains(rationales=str(write_data(tmp_path / "verified.jsonl", verdicts)))
    choices = [{**row, "choices": {"A": "one", "B": "two"}} for row in rows]  # rationales may state a choice's text
    assert trains(rationales=str(write_data(tmp_path / "choices.jsonl", choices)))
    assert trains(rationales=str(write_data(tmp_path / "other.jsonl", rows[:-1])))


def test_a_student_of_other_inputs_is_moved_aside_and_can_be_taken_back(configure, capsys, monkeypatch):
    folder = pipeline.train(configure(report={"gains": False}))
    old = weights(folder)
    (folder.student_path / "my notes").mkdir()  # a user's own
    capsys.readouterr()
    again = pipeline.train(configure(report={"gains": False}, train={"max_steps": 1}))
    said = capsys.readouterr().err
    (aside,) = folder.path.glob("before.*")
    assert "train: other inputs than before (train.max_steps)." in said
    assert str(aside) in said
    assert f"To take it back: compact run {aside}/config.yaml --set output={folder.path}" in said
    assert (aside / "student" / "my notes").is_dir()
    assert same(load_file(aside / "student" / "adapter_model.safetensors"), old)
    assert not (again.student_path / "my notes").exists()
    assert {row["step"] for row in again.read_scores()} == {0}
    monkeypatch.setattr(pipeline, "train_student", None)  # nothing is trained to take it back
    back = load_config(aside / "config.yaml", {"output": str(folder.path)})
    assert same(weights(pipeline.train(back)), old)
    assert "taken back" in capsys.readouterr().err


def test_a_student_goes_for_good_only_where_the_user_says_so(configure):
    folder = pipeline.train(configure(train={"max_steps": 1}, report={"gains": False}))
    pipeline.train(configure(train={"max_steps": 2}, report={"gains": False}), discard=True)
    assert not list(folder.path.glob("before.*"))


def test_a_run_that_would_write_what_it_reads_is_refused(configure, tmp_path):
    folder = pipeline.train(configure(train={"max_steps": 1}, report={"gains": False}))
    before = state_of(folder.path)
    for student in (folder.student_path, folder.student_path / "checkpoint-1", f"{folder.path}/../run/student/"):
        with pytest.raises(InputError, match=r"would write .*student, which this run reads as"):
            pipeline.train(configure(student=str(student)))
    assert "which this run reads" in "".join(pipeline.validate_run(configure(rationales=str(folder.data_path))))
    assert state_of(folder.path) == before


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("student/adapter_model.safetensors", "delete"),
        ("student/adapter_model.safetensors", "cut"),
        ("student/adapter_model.safetensors", "flip"),
        ("student/adapter_config.json", "delete"),
        ("scores.jsonl", "flip"),
        ("data.jsonl", "cut"),
        ("gains.jsonl", "flip"),
    ],
)
def test_what_a_finished_run_lacks_is_said_and_done_again(configure, capsys, file, harm):
    config = configure(train={"max_steps": 2})
    folder = pipeline.run(config)
    path = folder.path / file
    whole = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(whole[:-9] if harm == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    capsys.readouterr()
    assert any(file in line for line in pipeline.damage_of(RunFolder.open(folder.path), verify=True))
    if file.startswith("student"):
        with pytest.raises(RunError, match="from the last complete checkpoint"):
            pipeline.evaluate(folder.path, {}, verify=True)
    pipeline.run(config, verify=harm == "flip")
    said = capsys.readouterr().err
    assert f"{file} {'is missing' if harm == 'delete' else 'has'}" in said
    assert path.read_bytes() == whole
    if file == "scores.jsonl":  # the student of that training is kept beside it
        assert list(folder.path.glob("damaged.*/student/adapter_model.safetensors"))
    asides = list(folder.path.glob("damaged.*"))
    assert bool(asides) == (harm != "delete")
    assert pipeline.damage_of(RunFolder.open(folder.path), verify=True) == []


@pytest.mark.parametrize("harm", ["flip", "list", "number"])
def test_a_damaged_adapter_configuration_ends_in_a_message_and_is_made_again_where_that_is_asked_for(
    configure, tmp_path, harm
):
    exam = write_data(tmp_path / "exam.jsonl", [{"id": "e", "question": "1 + 1?", "answer": "2"}])
    config = configure(train={"max_steps": 2}, eval={"learned": [str(exam)], "max_new_tokens": 2, "drift_rows": 0})
    folder = pipeline.run(config)
    path = folder.student_path / "adapter_config.json"
    whole = path.read_bytes()
    odd = {"flip": whole[:-3] + b"\x01" + whole[-2:], "list": b"[]", "number": b'{"base_model_name_or_path": 7}'}[harm]
    path.write_bytes(odd.ljust(len(whole)))  # as long as it was: the cheap check sees nothing
    (folder.eval_path / "student" / "exam.json").unlink()
    with pytest.raises(StudentError, match="compact run --verify"):
        pipeline.run(config)
    pipeline.run(config, verify=True)
    assert path.read_bytes() == whole
    assert (folder.eval_path / "student" / "exam.json").is_file()


def test_a_trace_that_was_cut_is_never_continued_with_a_hole(configure, tmp_path, monkeypatch, capsys):
    train = {"save_steps": 2, "save_total_limit": 5}
    whole = pipeline.train(configure(output=str(tmp_path / "whole"), train=train, report={"gains": False}))
    config = configure(train=train, report={"gains": False})
    calls = 0

    def crash(trainer, *arguments, **named):
        nonlocal calls
        calls += 1
        if calls == 10:  # in the middle of the fifth step, after checkpoint-4
            raise RuntimeError("the machine lost power")
        return training_step(trainer, *arguments, **named)

    training_step = CompactTrainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(CompactTrainer, "training_step", crash)
        with pytest.raises(RuntimeError, match="lost power"):
            pipeline.train(config)
    scores = Path(config.output) / "scores.jsonl"
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:5]))  # steps 0 and 1 are whole
    again = pipeline.train(config)
    said = capsys.readouterr().err
    assert "checkpoint-4 cannot be gone on from (scores.jsonl lacks" in said
    assert "checkpoint-2 cannot" not in said
    assert list(again.read_scores()) == list(whole.read_scores())
    assert same(weights(again), weights(whole))


def test_what_a_user_keeps_beside_the_checkpoints_is_the_users(configure, capsys):
    config = configure(train={"save_steps": 1, "save_total_limit": 2}, report={"gains": False})
    stop_in_training(config)  # in the fifth step
    student = Path(config.output) / "student"
    shutil.copytree(student / "checkpoint-4", student / "checkpoint-4-best")
    (student / "checkpoint-mine").mkdir()
    (student / "checkpoint-mine" / "adapter_model.safetensors").write_text("mine")
    (student / "README.md").write_text("about my student", encoding="latin-1")
    (student / "checkpoint-4" / "complete.json").unlink()  # as a crash leaves it
    capsys.readouterr()
    pipeline.train(config)
    said = capsys.readouterr().err
    assert sorted(path.name for path in student.glob("checkpoint-*")) == [
        "checkpoint-4-best", "checkpoint-5", "checkpoint-6", "checkpoint-mine",
    ]  # fmt: skip
    assert (student / "checkpoint-4-best" / "complete.json").is_file()
    assert (student / "checkpoint-mine" / "adapter_model.safetensors").read_text() == "mine"
    (half,) = Path(config.output).glob("damaged.*/student/checkpoint-4")
    assert f"it is now in {half.parents[1]}" in said
    (card,) = student.glob("README.md.*")
    assert card.read_text() == "about my student"
    assert card.name in said


def test_every_file_of_a_run_has_the_permissions_of_any_new_file(configure):
    before = os.umask(0o027)
    try:
        folder = pipeline.run(configure(train={"save_steps": 1}))
    finally:
        os.umask(before)
    modes = {path.relative_to(folder.path): oct(path.stat().st_mode & 0o777) for path in folder.path.rglob("*")}
    assert Path("student/adapter_model.safetensors") in modes
    assert Path("student/checkpoint-6/adapter_model.safetensors") in modes
    assert set(modes.values()) == {"0o640", "0o750"}


def test_a_loss_or_weight_that_is_no_number_stops_at_its_step(configure, monkeypatch, tmp_path):
    config = configure(train={"save_steps": 2}, report={"gains": False})
    job_loss, calls = CompactTrainer._job_loss, []

    def spoilt(trainer, *arguments, **named):
        calls.append(1)
        if len(calls) == 7:  # two batches a step: the fourth step
            with torch.no_grad():
                next(p for p in trainer.model.parameters() if p.requires_grad).fill_(float("nan"))
        return job_loss(trainer, *arguments, **named)

    monkeypatch.setattr(CompactTrainer, "_job_loss", spoilt)
    with pytest.raises(RunError, match=r"step 4: the loss is nan on 'p\d'"):
        pipeline.train(config)
    folder = RunFolder.open(config.output)
    assert [p.name for p in folder.student_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (folder.student_path / "adapter_model.safetensors").exists()
    assert not folder.manifest["stages"]["train"]["finished"]
    assert all(json.dumps(row, allow_nan=False) for row in folder.read_scores())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stops_before_the_step(configure, monkeypatch, value):
    monkeypatch.setattr("transformers.Trainer._clip_grad_norm", lambda trainer, model: torch.tensor(value))
    with pytest.raises(RunError, match=rf"step 1: the gradient's norm is {value}"):
        pipeline.train(configure(report={"gains": False}))


def test_weights_that_are_no_numbers_are_not_sealed(configure, monkeypatch):
    def overflow(self, *arguments, **named):
        with torch.no_grad():
            next(p for p in self.model.parameters() if p.requires_grad).fill_(float("inf"))

    monkeypatch.setattr("transformers.Trainer._maybe_log_save_evaluate", overflow, raising=True)
    with pytest.raises(RunError, match=r"the loss is nan|weight .* is no longer finite after step"):
        pipeline.train(configure(train={"max_steps": 1}, report={"gains": False}))
    assert not list(Path(configure().output).glob("student/*.safetensors"))


def test_the_seed_alone_decides_what_a_run_learns(configure, tmp_path):
    first = pipeline.train(configure(output=str(tmp_path / "a"), train={"max_steps": 2}))
    torch.manual_seed(999)  # whatever ran before
    second = pipeline.train(configure(output=str(tmp_path / "b"), train={"max_steps": 2}))
    other = pipeline.train(configure(output=str(tmp_path / "c"), train={"max_steps": 2}, seed=7))
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(other))


def test_a_crashed_run_ends_with_the_weights_and_trace_of_one_that_was_not(configure, tmp_path, monkeypatch):
    whole = pipeline.train(configure(output=str(tmp_path / "whole"), train={"save_steps": 2}))
    config = configure(train={"save_steps": 2})
    steps = 0

    def crash(trainer, *arguments, **named):
        nonlocal steps
        steps += 1
        if steps == 10:  # two batches a step: in the middle of the fifth, after checkpoint-4
            raise RuntimeError("the machine lost power")
        return training_step(trainer, *arguments, **named)

    training_step = pipeline.train_student.__globals__["CompactTrainer"].training_step
    with monkeypatch.context() as patch:
        patch.setattr("compact_distill.training.trainer.CompactTrainer.training_step", crash)
        with pytest.raises(RuntimeError, match="lost power"):
            pipeline.train(config)
    interrupted = Path(config.output) / "student" / "checkpoint-5"
    interrupted.mkdir()  # and it was writing this one
    (interrupted / "adapter_model.safetensors").write_bytes(b"half")

    again = pipeline.train(config)
    assert same(weights(again), weights(whole))
    assert list(again.read_scores()) == list(whole.read_scores())
    assert not interrupted.exists()
    assert again.stage_summary("train")["loss"] == whole.stage_summary("train")["loss"], "of both parts"
    last = json.loads(again.training_log_path.read_text().splitlines()[-1])
    assert again.stage_summary("train")["seconds"] == round(last["seconds"], 1), "of both parts"


def test_sigterm_saves_a_checkpoint_and_the_next_run_goes_on(configure, tmp_path, capsys):
    train = {"num_train_epochs": 15, "save_strategy": "no"}
    config = configure(train=train)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    code = "import sys; from compact_distill.cli import app; sys.argv[0] = 'compact'; app()"
    command = subprocess.Popen(
        [sys.executable, "-c", code, "train", str(path)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    scores = Path(config.output) / "scores.jsonl"
    try:
        while command.poll() is None and not (scores.exists() and scores.stat().st_size):
            time.sleep(0.02)
        command.send_signal(signal.SIGTERM)
        said = command.communicate(timeout=120)[1]
    finally:
        command.kill()
    assert command.returncode == 128 + signal.SIGTERM
    assert "stopping after this step" in said
    assert "Traceback" not in said
    (checkpoint,) = Path(config.output, "student").glob("checkpoint-*")
    done = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 0 < done < 45
    whole = pipeline.train(configure(output=str(tmp_path / "whole"), train=train))
    again = pipeline.train(config)
    assert f"train: goes on after step {done} of 45" in capsys.readouterr().err
    assert same(weights(again), weights(whole))


def test_a_student_without_adapter_trains_all_weights(configure, student):
    folder = pipeline.train(configure(lora=None, train={"max_steps": 2}))
    before, after = (load_file(path / "model.safetensors") for path in (student, folder.student_path))
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert unchanged == []


def test_an_adapter_folder_is_trained_further(configure, tmp_path, capsys):
    first = pipeline.train(configure(train={"max_steps": 1}))
    second = pipeline.train(
        configure(student=str(first.student_path), output=str(tmp_path / "second"), train={"max_steps": 1})
    )
    assert weights(first).keys() == weights(second).keys()
    assert not same(weights(first), weights(second))
    assert "this adapter is trained further" in capsys.readouterr().err


def test_two_runs_cannot_share_a_folder(configure):
    config = configure()
    with RunFolder.claim(config.output), pytest.raises(RunError, match="is being written"):
        pipeline.run(config)


# ---- scoring


def test_a_score_file_holds_the_scores_in_the_inputs_order(configure, tmp_path, student):
    rows = [
        problem(1, "We add. The answer is 2.", None, "So it is 2. The answer is 2."),
        problem(0, "The answer is 1.", "Thus one. The answer is 1." + " more" * 400),
    ]
    path = write_data(tmp_path / "data.jsonl", rows)
    config = configure(rationales=str(path), max_length=200)
    out = tmp_path / "scores.jsonl"
    summary = pipeline.score_file(config, out)
    assert summary == "2 problems; rationales: 1 missing, 3 ok, 1 over_length"

    found = [json.loads(line) for line in out.read_text().splitlines()]
    keys = ["id", "teachers", "consensus", "adaptability", "difficulty", "weights"]
    assert [list(row) for row in found] == [keys, keys]
    assert [row["id"] for row in found] == ["p1", "p0"]
    assert found[0]["teachers"] == ["t0", "t1", "t2"]
    assert found[0]["difficulty"][1] is None
    assert found[0]["weights"][1] == 0
    assert found[1]["weights"] == [1, 0]
    assert not (tmp_path / "run").exists()  # scoring makes no run folder

    model, tokenizer = load_student(student)
    expected = list(score(model, tokenizer, load_instances(path), config.compatibility, max_length=200))
    assert [tuple(row["weights"]) for row in found] == [row.weights for row in expected]


def test_scoring_that_fails_leaves_the_old_file(configure, tmp_path, monkeypatch):
    out = tmp_path / "scores.jsonl"
    out.write_text("old")

    def fail(*arguments, **named):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(pipeline, "score", fail)
    with pytest.raises(RuntimeError):
        pipeline.score_file(configure(), out)
    assert out.read_text() == "old"


# ---- checking


def test_everything_wrong_is_listed_at_once(configure, tmp_path):
    rows = [problem(1, "The answer is 2."), problem(1, "The answer is 2."), {**problem(2, "x"), "question": " "}]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    config = configure(
        student=str(tmp_path / "nowhere"),
        rationales=str(write_data(tmp_path / "bad.jsonl", rows)),
        eval={"learned": ["gsm9k"]},
        compatibility={"extra_scores": {"style": 1.0}},
        train={"eval_strategy": "steps", "load_best_model_at_end": True, "save_strategy": "epoch"},
    )
    found = pipeline.validate_run(config)
    for part in (
        "nowhere does not exist",
        "line 2: id 'p1' stands already in line 1",
        "line 3: question must be text",
        "run holds other files",
        "there is no score 'style'",
        "train: transformers refuses these settings",
        "task must be one of",
    ):
        assert sum(part in message for message in found) == 1, (part, found)
    with pytest.raises(InputError) as caught:
        pipeline.run(config)
    assert caught.value.problems == found
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["notes.txt"]


def test_a_run_without_faults_has_nothing_to_list(configure):
    assert pipeline.validate_run(configure()) == []


def test_what_a_dry_run_counts_is_what_the_run_does(configure, tmp_path, student):
    rows = [
        problem(1, "We add.\nThe answer is 2.", None),
        problem(2, "I do not know", "so it is 3. The answer is 3."),
        problem(3, "It is four. The answer is 4." + " x" * 500, "no idea"),
    ]
    config = configure(rationales=str(write_data(tmp_path / "data.jsonl", rows)), max_length=200)
    shown = pipeline.dry_run(pipeline.prepare(config))

    ok, missing, unparsed, long = (RationaleStatus(s) for s in ("ok", "missing", "unparsed", "over_length"))
    assert shown.teachers[0].statuses == {ok: 1, unparsed: 1, long: 1}
    assert shown.teachers[1].statuses == {ok: 1, missing: 1, unparsed: 1}
    assert (shown.problems, shown.without_rationale) == (2, 1)
    tokenizer = load_tokenizer(student)  # transformers makes a Qwen2 tokenizer of what was saved

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    # Reasoning and answer segment are tokenised apart; eos is one more.
    first = count(" We add.") + count("\nThe answer is 2.") + 1
    prompts = [count(f"Question: What is {n} + 1?\nAnswer:") for n in (1, 2)]
    assert shown.teachers[0].lengths == (first,)
    assert shown.prompt_tokens == sum(prompts)
    assert shown.tokens_per_epoch == sum(prompts) + sum(sum(t.lengths) for t in shown.teachers)
    page = str(shown)
    assert "problems: 2, 1 left out" in page
    assert len({len(line) for line in page.splitlines()[1:4]}) == 1  # the columns stand under each other

    folder = pipeline.run(config)
    assert folder.stage_summary("train")["steps"] == shown.steps
    assert folder.stage_summary("train")["statuses"] == {"missing": 1, "ok": 2, "over_length": 1, "unparsed": 2}


def test_a_dry_run_counts_what_the_weight_rule_skips_as_the_run_does(configure, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows[2:]:
        del row["rationales"][0]  # the right one
    config = configure(
        rationales=str(write_data(tmp_path / "wrong.jsonl", rows)), weighting="verified", report={"gains": False}
    )
    shown = pipeline.dry_run(pipeline.prepare(config))
    assert (shown.problems, shown.skipped) == (2, 4)
    summary = pipeline.train(config).stage_summary("train")
    assert (summary["problems"], summary["problems_skipped"], summary["steps"]) == (2, 4, shown.steps)


def test_a_rationale_that_takes_no_part_for_its_inferred_answer_has_no_gains(configure, tmp_path):
    rows = [problem(n, f"First, {n}.\nThe answer is {n + 1}.", f"So Ann has {n + 1} apples.") for n in range(2)]
    config = configure(
        rationales=str(write_data(tmp_path / "data.jsonl", rows)), answers={"infer": False}, train={"max_steps": 1}
    )
    lines = [json.loads(line) for line in pipeline.train(config).gains_path.read_text().splitlines()]
    assert lines
    assert all(line["rationales"][0] is not None and line["rationales"][1] is None for line in lines)


# ---- once is enough


@pytest.fixture
def count_calls(monkeypatch):
    """Count calls of a function, by the names of its module and itself."""

    def count(module, name) -> list[tuple]:
        calls: list[tuple] = []
        original = getattr(module, name)

        def counted(*args, **named):
            calls.append(args)
            return original(*args, **named)

        monkeypatch.setattr(module, name, counted)
        return calls

    return count


def test_a_run_reads_and_tokenises_everything_once(configure, count_calls, data, tmp_path):
    exam_data = write_data(tmp_path / "exam.jsonl", [{"id": "e", "question": "What is 9 + 9?", "answer": "18"}])
    config = configure(
        eval={"learned": [str(exam_data)], "max_new_tokens": 2, "every_epoch": True}, report={"gains": False}
    )
    encoded = count_calls(Encoder, "__call__")
    task_reads = count_calls(examine_module, "read_task")
    data_reads = count_calls(prepare_module, "load_instances")
    arguments = count_calls(prepare_module, "CompactConfig")
    pipeline.run(config)
    assert sorted(call[1].id for call in encoded) == [f"p{n}" for n in range(6)]
    assert (len(task_reads), len(data_reads), len(arguments)) == (1, 1, 1)


def test_what_only_the_report_wants_does_not_fail_the_training(configure, capsys, monkeypatch):
    def fail(*arguments):
        raise OSError("no space left")
        yield

    monkeypatch.setattr(pipeline, "read_gains", fail)
    monkeypatch.setattr(pipeline, "used_rows", fail)
    folder = pipeline.train(configure(train={"max_steps": 1}))
    assert folder.stage_summary("train")["steps"] == 1
    said = capsys.readouterr().err
    assert "data: data.jsonl could not be written (OSError: no space left)" in said
    assert "gains: gains.jsonl could not be written" in said
    assert not folder.gains_path.exists()
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "train_student", None)  # the student is there; only what is missing is done
    again = pipeline.train(configure(train={"max_steps": 1}))
    assert again.gains_path.exists()
    assert again.data_path.exists()


def test_gains_can_be_switched_off(configure):
    folder = pipeline.train(configure(report={"gains": False}, train={"max_steps": 1}))
    assert not folder.gains_path.exists()


# ---- students on a hub


def test_a_run_keeps_the_commit_it_started_with(hub, configure, capsys):
    config = configure(student="org/tiny", train={"max_steps": 1}, report={"gains": False})
    folder = pipeline.train(config)
    assert folder.manifest["student"]["commits"] == {"org/tiny": OLD}
    adapter = json.loads((folder.student_path / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/tiny", OLD)
    hub.move(NEW)
    capsys.readouterr()
    pipeline.train(config)
    said = capsys.readouterr().err
    assert "train: done already" in said
    assert f"the hub has org/tiny at {NEW[:12]} now; this run keeps {OLD[:12]}" in said
    again = pipeline.train(configure(student=f"org/tiny@{NEW}", train={"max_steps": 1}, report={"gains": False}))
    assert again.manifest["student"]["commits"] == {"org/tiny": NEW}


def stop_in_training(config, number=10) -> None:
    """The machine loses power in the `number`-th batch of the training."""
    calls = 0
    training_step = CompactTrainer.training_step

    def crash(trainer, *arguments, **named):
        nonlocal calls
        calls += 1
        if calls == number:
            raise RuntimeError("the machine lost power")
        return training_step(trainer, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompactTrainer, "training_step", crash)
        with pytest.raises(RuntimeError, match="lost power"):
            pipeline.train(config)


@pytest.mark.parametrize("named", ["student", "base under an adapter"])
def test_a_base_that_moves_on_while_a_run_is_stopped_does_not_change_what_it_learns(
    hub, configure, named, capsys, tmp_path
):
    name = "org/tiny"
    if named != "student":
        first = configure(student=name, output=str(tmp_path / "first"), train={"max_steps": 1}, report={"gains": False})
        name = str(pipeline.train(first).student_path)
        settings_path = Path(name) / "adapter_config.json"
        settings = json.loads(settings_path.read_text())
        settings_path.write_text(json.dumps({**settings, "revision": None}))  # as most adapters are published

    def made(output: str) -> RunConfig:
        settings = {"train": {"save_steps": 2}, "report": {"gains": False}}
        return configure(student=name, output=str(tmp_path / output), **settings)

    whole = pipeline.train(made("whole"))
    config = made("run")
    stop_in_training(config)
    hub.move(NEW)
    capsys.readouterr()
    again = pipeline.train(config)
    said = capsys.readouterr().err
    assert f"the hub has org/tiny at {NEW[:12]} now; this run keeps {OLD[:12]}" in said
    assert "other inputs" not in said
    assert again.manifest["student"]["commits"] == {"org/tiny": OLD}
    assert same(weights(again), weights(whole))
    assert list(again.read_scores()) == list(whole.read_scores())


@pytest.mark.parametrize("changed", ["weights", "config.json"])
@pytest.mark.parametrize("when", ["finished", "stopped"])
def test_a_base_that_changes_under_an_adapter_trains_again(configure, student, tmp_path, capsys, changed, when):
    base = tmp_path / "base"
    shutil.copytree(student, base)
    settings = {"report": {"gains": False}, "train": {"save_steps": 2}}
    first = pipeline.train(configure(student=str(base), output=str(tmp_path / "first"), **settings))
    config = configure(student=str(first.student_path), **settings)
    if when == "finished":
        pipeline.train(config)
    else:
        stop_in_training(config)
    if changed == "weights":
        model = tiny_model("qwen2", layers=2, dtype=torch.float32, seed=9)
        save_student(base, model, byte_level_tokenizer())
    else:
        path = base / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 1e-3}))
    capsys.readouterr()
    again = pipeline.train(config)
    assert "train: other inputs than before (student)" in capsys.readouterr().err
    alone = pipeline.train(configure(student=str(first.student_path), output=str(tmp_path / "alone"), **settings))
    assert same(weights(again), weights(alone))
    assert list(again.read_scores()) == list(alone.read_scores())


@pytest.mark.parametrize("harm", ["flip", "bytes", "list", "cut", "delete"])
def test_a_damaged_training_log_neither_stops_a_run_nor_loses_more_than_the_line(configure, capsys, tmp_path, harm):
    settings = {"train": {"save_steps": 2}, "report": {"gains": False}}
    whole = pipeline.train(configure(output=str(tmp_path / "whole"), **settings))
    config = configure(**settings)
    stop_in_training(config)
    log = Path(config.output) / "training_log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    lines[1] = {"flip": lines[1].replace(b"{", b"<", 1), "bytes": b"\xff\x00\n", "list": b"[1]\n"}.get(harm, lines[1])
    log.write_bytes(b"".join(lines)[:-9] if harm == "cut" else b"".join(lines))
    if harm == "delete":
        log.unlink()
    capsys.readouterr()
    again = pipeline.train(config)
    said = capsys.readouterr().err
    steps = {"cut": [1, 2, 3, 5, 6], "delete": [5, 6]}.get(harm, [1, 3, 4, 5, 6])
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == steps
    assert ("training_log.jsonl, line 2: " in said) == (harm in ("flip", "bytes", "list"))
    assert same(weights(again), weights(whole))


# ---- scores of a user's own, outputs that are inputs, dead ends


def test_a_file_of_scores_is_imported_where_it_is_named_and_counts_by_what_it_says(configure, tmp_path):
    text = "import compact_distill as c\nc.register_score('own_{}', lambda outputs: outputs.length_BK.float(), False)\n"
    (tmp_path / "first.py").write_text(text.format("a"))
    settings = {"extra_scores": {"own_a": 0.5}, "scores_from": str(tmp_path / "first.py")}
    folder = pipeline.train(configure(compatibility=settings, train={"max_steps": 1}, report={"gains": False}))
    assert all("own_a" in row["extra_scores"] for row in folder.read_scores())
    assert folder.manifest["scores_from"] == str(tmp_path / "first.py")
    assert folder.manifest["less_is_better"] == ["difficulty", "own_a"]
    made_of = pipeline.prepare(configure(compatibility=settings)).made_of["compatibility"]
    (tmp_path / "copy.py").write_text(text.format("a"))
    again = {**settings, "scores_from": str(tmp_path / "copy.py")}
    assert pipeline.prepare(configure(compatibility=again)).made_of["compatibility"] == made_of
    (tmp_path / "copy.py").write_text(text.format("a") + "# changed")
    assert pipeline.prepare(configure(compatibility=again)).made_of["compatibility"] != made_of


@pytest.mark.parametrize("text", ["1 / 0", "import nothing_like_this", "syntax error", None])
def test_a_file_of_scores_that_does_not_import_is_told(configure, tmp_path, text):
    path = tmp_path / f"broken_{abs(hash(text))}.py"
    if text is not None:
        path.write_text(text)
    (message,) = pipeline.validate_run(configure(compatibility={"scores_from": str(path)}))
    assert "compatibility.scores_from must be a Python file or module that imports" in message


def test_a_score_file_that_is_there_is_moved_aside(configure, tmp_path, capsys):
    out = tmp_path / "scores.jsonl"
    pipeline.score_file(configure(), out)
    first = out.read_text()
    pipeline.score_file(configure(compatibility={"temperature": 2.0}), out)
    (aside,) = tmp_path.glob("scores.jsonl.*")
    assert aside.read_text() == first != out.read_text()
    assert f"that one is now {aside}" in capsys.readouterr().err


def test_a_student_that_yields_no_numbers_cannot_score(configure, tmp_path):
    model = tiny_model("qwen2", layers=1, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    broken = save_student(tmp_path / "broken", model, byte_level_tokenizer())
    with pytest.raises(RunError, match=r"problem 'p0': the student gives \w+ nan for 't0'"):
        pipeline.score_file(configure(student=str(broken)), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(RunError, match="step 1: the loss is nan"):
        pipeline.train(configure(student=str(broken)))


@pytest.mark.parametrize("nothing", [None, "", "I cannot say", "It is 2 or perhaps 3", "Let me think. The answer is"])
def test_a_problem_without_a_usable_rationale_is_dropped_and_counted(configure, tmp_path, nothing):
    rows = [problem(1, "We add. The answer is 2.", nothing), problem(2, nothing, nothing)]
    config = configure(rationales=str(write_data(tmp_path / "some.jsonl", rows)), train={"max_steps": 1})
    summary = pipeline.train(config).stage_summary("train")
    assert summary["problems"] == 1
    assert sum(summary["statuses"].values()) == 4
    none = configure(rationales=str(write_data(tmp_path / "none.jsonl", rows[1:])), output=str(tmp_path / "none"))
    (message,) = pipeline.validate_run(none)
    assert message.startswith("no rationale is left to train on (")
    with pytest.raises(InputError, match="no rationale is left to train on"):
        pipeline.train(none)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "train.label_smoothing_factor has no effect here, got 0.1"),
        ({"eval_strategy": "epoch"}, "train.eval_strategy has no effect here"),
        ({"prediction_loss_only": True}, "train.prediction_loss_only has no effect here"),
        ({"include_for_metrics": ["inputs"]}, "train.include_for_metrics has no effect here"),
        ({"label_names": ["labels"]}, "train.label_names has no effect here"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            "train.load_best_model_at_end has no effect here",
        ),
        ({"report_to": "wandb"}, "train.report_to"),
        ({"report_to": ["clearml"]}, "train.report_to"),
        ({"optim": "adamw_bnb_8bit"}, "train.optim"),
        ({"optim": "galore_adamw", "optim_target_modules": ["attn"]}, "train.optim"),
        ({"use_liger_kernel": True}, "train.use_liger_kernel cannot be used"),
        ({"torch_empty_cache_steps": 2}, "train.torch_empty_cache_steps has no effect here"),
        ({"save_only_model": True}, "train.save_only_model cannot be used"),
        ({"fp16": True}, "fp16"),
        ({"push_to_hub": True}, "train.push_to_hub needs a login"),
    ],
)
def test_training_settings_that_cannot_work_here_fail_before_any_work(configure, settings, message, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found = pipeline.validate_run(configure(train=settings))
    assert any(message in text for text in found), found


@pytest.mark.parametrize("pattern", ["(?:a|aa)+b", "(?:a|aa|aaa)+d"])
def test_a_thinking_expression_that_never_ends_is_told_by_validation(configure, tmp_path, monkeypatch, pattern):
    monkeypatch.setattr("compact_distill.method.encode._PATTERN_SECONDS", 0.5)
    long = f"So {'a' * 60}c. The answer is 1."
    rows = [problem(n, long if n == 3 else "So 1.\nThe answer is 1.") for n in range(6)]
    settings = {"rationales": str(write_data(tmp_path / "odd.jsonl", rows))}
    config = configure(**settings, compatibility={"thinking_expressions": [r"\bso\b", pattern]})
    (message,) = pipeline.validate_run(config)
    assert message.startswith("compatibility.thinking_expressions: ")
    assert "within 0.5 seconds" in message
    assert repr(pattern) in message
    assert pipeline.validate_run(configure(**settings, compatibility={"thinking_expressions": ["a+"]})) == []
    prepared = pipeline.prepare(configure(compatibility={"thinking_expressions": [pattern]}))
    with pytest.raises(InputError, match="thinking_expressions"):  # as where teachers have just answered
        prepared.with_rationales(load_instances(config.rationales))


def test_what_is_not_stated_takes_part_unless_inferring_is_turned_off(configure, tmp_path):
    rows = [problem(n, f"First, we add 1 to {n}. The answer is {n + 1}.", f"So Ann has {n + 1} coins.") for n in (1, 2)]
    rows[0]["rationales"].append({"teacher": "t2", "text": "So 2 coins.", "answer": "2", "answer_from": "inferred"})
    settings = {"rationales": str(write_data(tmp_path / "inferred.jsonl", rows)), "train": {"max_steps": 1}}
    for infer, expected in ((True, {"ok": 5}), (False, {"ok": 2, "unparsed": 3})):
        config = configure(**settings, answers={"infer": infer}, output=str(tmp_path / str(infer)))
        assert pipeline.prepare(config).arguments.infer_answers is infer
        shown = pipeline.dry_run(pipeline.prepare(config))
        assert [t.inferred for t in shown.teachers] == ([0, 2, 1] if infer else [0, 0, 0])
        assert sum((t.statuses for t in shown.teachers), Counter()) == expected
        assert pipeline.train(config).stage_summary("train")["statuses"] == expected
        counts = ", ".join(f"{count} {status}" for status, count in expected.items())
        assert pipeline.score_file(config, tmp_path / f"{infer}.jsonl") == f"2 problems; rationales: {counts}"


def test_training_settings_at_their_defaults_are_no_faults(configure):
    assert pipeline.validate_run(configure(train={"label_smoothing_factor": 0.0, "eval_strategy": "no"})) == []


def _with(student: Path, folder: Path, template: str | None = None, **generation) -> str:
    """A copy of the student with another chat template or generation config."""
    shutil.copytree(student, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    path = folder / "generation_config.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | generation))
    return str(folder)


@pytest.mark.parametrize(
    ("template", "says", "remedy"),
    [
        ("{{ raise_exception('no tools here') }}", "no tools here", {}),
        (
            "{% if messages[0]['role'] != 'system' %}{{ raise_exception('needs a system message') }}{% endif %}"
            "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
            "needs a system message",
            {"system": "You reason."},
        ),
        ("<|im_start|>assistant\n", "must put the question into the prompt", {}),
        ("{{ messages[-1]['content'] }}<think>\n", "ends its generation prompt with <think>", {"close_thinking": True}),
        (
            "{{ messages[-1]['content'] }}{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}",
            "template_options: {enable_thinking: false}",
            {"template_options": {"enable_thinking": False}},
        ),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_one_error_of_validation(
    configure, student, tmp_path, template, says, remedy
):
    broken = _with(student, tmp_path / "student", template)
    (message,) = pipeline.validate_run(configure(student=broken))
    assert says in message
    with pytest.raises(InputError) as caught:
        pipeline.run(configure(student=broken))
    assert caught.value.problems == [message]
    assert not remedy or pipeline.validate_run(configure(student=broken, text=remedy)) == []


def test_a_student_with_several_templates_says_to_choose_one_and_trains_with_it(configure, student, tmp_path):
    folder = Path(_with(student, tmp_path / "student"))
    (folder / "additional_chat_templates").mkdir()
    for name in ("rag", "tool_use"):
        path = folder / "additional_chat_templates" / f"{name}.jinja"
        path.write_text(f"{name}: {{{{ messages[-1]['content'] }}}}\n")
    (message,) = pipeline.validate_run(configure(student=str(folder)))
    assert "template_options: {chat_template: NAME}" in message
    chosen = {"student": str(folder), "text": {"template_options": {"chat_template": "rag"}}}
    assert pipeline.validate_run(configure(**chosen)) == []
    run = pipeline.train(configure(**chosen, train={"max_steps": 1}, report={"gains": False}))
    assert run.stage_summary("train")["steps"] == 1


def test_a_student_whose_template_loops_over_parts_reads_the_whole_question(configure, student, tmp_path):
    template = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
    config = configure(student=_with(student, tmp_path / "student", template))
    shown = pipeline.dry_run(pipeline.prepare(config))
    tokenizer = load_tokenizer(config.student)
    questions = [f"What is {n} + 1?" for n in range(6)]
    assert shown.prompt_tokens == sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in questions)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.6}, {"top_p": 0.9, "do_sample": False}, {"length_penalty": 2.0}]
)
def test_full_training_gets_past_its_first_checkpoint_whatever_the_students_generation_config(
    configure, student, tmp_path, settings
):
    config = configure(
        student=_with(student, tmp_path / "student", **settings),
        lora=None,
        train={"max_steps": 2, "save_strategy": "steps", "save_steps": 1},
    )
    assert pipeline.validate_run(config) == []
    folder = pipeline.train(config)
    assert (folder.student_path / "checkpoint-1").is_dir()
    load_student(folder.student_path)


def test_many_problems_are_measured_on_all_cores_with_the_same_counts(configure, monkeypatch):
    prepared = pipeline.prepare(configure())
    alone = list(prepared.sizes())
    monkeypatch.setattr(prepare_module, "_MEASURED_ALONE", 2)
    monkeypatch.setattr(prepare_module, "_MEASURED_TOGETHER", 4)
    monkeypatch.setattr(prepare_module.os, "sched_getaffinity", lambda pid: {0, 1})
    assert list(prepared.sizes()) == alone
    assert len(alone) == 6


def test_a_plain_mix_is_asked_the_same_rows_as_problems_are(configure, data, tmp_path):
    trained = json.loads(data.read_text().splitlines()[0])["id"]
    rows = [
        {"id": name, "question": f"What is {n} + 90?", "answer": str(n + 90)} for n, name in enumerate(("e", trained))
    ]
    exam = {"learned": [str(write_data(tmp_path / "exam.jsonl", rows))]}
    asked = []
    for more in ({}, {"example": "rationale", "consistency": 0.0}):
        prepared = pipeline.prepare(configure(eval=exam, weighting="equal", **more))
        assert [row.id for _, rows in prepared.exam.rows for row in rows.rows] == ["e"], (
            "the other is a training problem's"
        )
        asked.append(prepared.exam.fingerprint)
        assert prepared.with_rationales(load_instances(data)).exam.fingerprint == asked[0]
    assert asked[0] == asked[1]
    assert len(prepared.instances) > len(load_instances(data))


def test_a_plain_mix_counts_the_rationales_that_have_no_text(configure, data):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0]["rationales"][0] |= {"text": "", "status": "truncated"}
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = []
    for more in ({}, {"example": "rationale", "consistency": 0.0}):
        prepared = pipeline.prepare(configure(weighting="equal", **more))
        found = pipeline.dry_run(prepared)
        shown.append({teacher.name: teacher.statuses for teacher in found.teachers})
        assert str(found).startswith("rationales, each an example of its own: " if more else "problems: ")
        dataset = ProblemDataset(prepared.encoded, 2560)
        assert dataset.statuses["truncated"] == 1
    assert shown[0] == shown[1]


def test_an_exam_is_what_is_asked_not_where_it_lies_or_how_fast_it_goes(configure, tmp_path):
    rows = [{"id": f"e{n}", "question": f"What is {n} + 9?", "answer": str(n + 9)} for n in range(4)]
    (tmp_path / "other").mkdir()
    paths = [str(write_data(tmp_path / folder / "exam.jsonl", rows)) for folder in (".", "other")]

    def exam(**settings) -> str:
        return prepare_module.read_exam(configure(eval={"learned": [paths[0]], **settings}), []).fingerprint

    assert exam(learned=[paths[1]]) == exam()
    assert exam(batch_tokens=7) == exam()
    assert exam(every_epoch=True) == exam()
    assert exam(limit=4) == exam()  # all the rows there are
    for changed in (
        {"limit": 3},
        {"max_new_tokens": 9},
        {"temperature": 0.5},
        {"temperature": 0.5, "samples": 2},
        {"drift_rows": 3},
    ):
        assert exam(**changed) != exam(), changed
    assert exam(learned=[], retained=[paths[0]]) != exam()
