"""From problems to a trained student in one run: what each stage redoes, records, refuses and prints."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
from typer.testing import CliRunner

import compact_distill
from compact_distill import pipeline
from compact_distill.cli import app
from compact_distill.config.file import config_from, dump_config
from compact_distill.errors import InputError, RunError
from compact_distill.lab import arithmetic
from compact_distill.records import Problem
from compact_distill.runs.folder import RunFolder
from compact_distill.teachers import stages
from models import byte_level_tokenizer, save_student, tiny_model
from teachers.server import Server, fails, says

KEY = "sk-secret-0123456789abcdefghij"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    model = tiny_model("llama", layers=1, dtype=torch.float32)
    return save_student(tmp_path_factory.mktemp("students") / "tiny", model, byte_level_tokenizer())


@pytest.fixture
def servers():
    """One that is right and one that is wrong."""

    def saying(answer):
        def behave(body, number):
            question = body["messages"][-1]["content"]
            return says(
                f"To {question[:20]} we add.\nThe answer is {answer}.", delay=0.02 if "problem" in question else 0
            )

        return behave

    with Server(saying(4)) as right, Server(saying(5)) as wrong:
        yield right, wrong


@pytest.fixture
def configure(student, servers, tmp_path, monkeypatch):
    """A run over six problems with the two servers; name what shall differ."""
    monkeypatch.setenv("MY_KEY", KEY)

    def make(count=6, answer="4", **changes):
        path = tmp_path / "problems.jsonl"
        rows = [{"id": f"p{i}", "question": f"problem p{i}?", "answer": answer} for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "student": str(student),
            "problems": {"path": str(path)},
            "teachers": [
                {"name": name, "model": "m", "base_url": server.url, "api_key_env": "MY_KEY"}
                for name, server in zip(("right", "wrong"), servers, strict=True)
            ],
            "output": str(tmp_path / "run"),
            "lora": {"r": 2},
            "train": {"max_steps": 2, "use_cpu": True},
        }
        return config_from({**settings, **changes})

    return make


@pytest.fixture
def compact(tmp_path):
    """Call the command with a configuration; returns what it printed."""

    def call(command, config, *arguments, code=0):
        path = tmp_path / "run.yaml"
        path.write_text(dump_config(config))
        result = CliRunner().invoke(app, [command, str(path), *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return call


def asked(servers):
    return [sum("problem" in seen.body["messages"][-1]["content"] for seen in server.seen) for server in servers]


def joined(folder):
    return [json.loads(line) for line in folder.training_path.read_text().splitlines()]


def test_one_run_goes_from_problems_to_a_trained_student_and_a_second_does_nothing(configure, servers, capsys):
    folder = pipeline.run(configure())
    assert asked(servers) == [6, 6]
    assert (folder.student_path / "adapter_model.safetensors").exists()
    assert {row["id"] for row in joined(folder)} == {f"p{i}" for i in range(6)}
    trace = list(folder.read_scores())
    assert trace
    assert all(row["teachers"] == ["right", "wrong"] for row in trace)
    manifest = RunFolder.open(folder.path).manifest
    assert manifest["teachers"] == ["right", "wrong"]
    assert manifest["decoding"][0]["api_key_env"] == "MY_KEY"
    assert manifest["decoding"][0]["temperature"] == 0.7
    assert manifest["decoding"][0]["system"].endswith("The answer is ANSWER.")
    summary = manifest["stages"]["generate"]["summary"]
    assert summary["wrong"]["verdicts"] == {"wrong": 6}
    written = (folder.student_path / "adapter_model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    pipeline.run(configure())
    assert asked(servers) == [6, 6]
    assert (folder.student_path / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert "generate: done already" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["cut", "flip", "delete"])
@pytest.mark.parametrize("command", [pipeline.run, pipeline.train])
def test_damaged_rationales_of_a_finished_run_come_back_from_the_stores(configure, servers, capsys, harm, command):
    folder = pipeline.run(configure())
    whole = folder.training_path.read_bytes()
    lines = whole.splitlines(keepends=True)
    if harm == "delete":
        folder.training_path.unlink()
    else:
        folder.training_path.write_bytes(b"".join(lines[:2]) if harm == "cut" else whole.replace(b"p1", b"p7", 1))
    written = (folder.student_path / "adapter_model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    command(configure())
    said = capsys.readouterr().err
    assert "joined again from the stores" in said
    assert "train: done already" in said  # the fragment was never trained on
    assert folder.training_path.read_bytes() == whole
    assert (folder.student_path / "adapter_model.safetensors").stat().st_mtime_ns == written
    assert bool(list(folder.path.glob("damaged.*/rationales.jsonl"))) == (harm != "delete")
    assert asked(servers) == [6, 6]


def test_a_student_that_was_set_aside_is_evaluated_and_reported_where_it_lies(configure, servers, tmp_path, compact):
    (tmp_path / "exam.jsonl").write_text(json.dumps({"id": "e", "question": "2 + 2?", "answer": "4"}) + "\n")
    exam = {"eval": {"learned": [str(tmp_path / "exam.jsonl")], "max_new_tokens": 2, "drift_rows": 0}}
    pipeline.run(configure())
    folder = pipeline.run(configure(train={"max_steps": 1, "use_cpu": True}))
    (aside,) = folder.path.glob("before.*")
    assert pipeline.damage_of(RunFolder.open(aside), verify=True) == []
    settings = {f"eval.{key}": value for key, value in exam["eval"].items()}
    results = pipeline.evaluate(aside, settings)
    assert (results / "student" / "exam.json").is_file()
    pipeline.run(configure())  # it is taken back; what was measured of the base there stays
    assert (folder.eval_path / "student" / "exam.json").is_file()
    assert (aside / "eval" / "base" / "exam.json").is_file()
    assert asked(servers) == [6, 6]


def test_no_file_of_a_run_holds_the_key(configure, servers):
    folder = pipeline.run(configure())
    assert servers[0].seen[0].headers["authorization"] == f"Bearer {KEY}"
    for path in folder.path.rglob("*"):
        if path.is_file():
            assert KEY.encode()[:12] not in path.read_bytes(), path


def test_changed_gold_answers_are_verified_and_trained_again_but_nothing_is_asked(configure, servers):
    pipeline.run(configure(generation={"rejection": "correct_only"}))
    folder = pipeline.run(configure(answer="5", generation={"rejection": "correct_only"}))
    assert asked(servers) == [6, 6]
    assert [[r["status"] for r in row["rationales"]] for row in joined(folder)] == [["rejected", "ok"]] * 6
    assert {row["answer"] for row in joined(folder)} == {"5"}


def test_stale_verdicts_neither_fill_a_slot_nor_open_one(configure, servers):
    once = {"rejection": "until_correct", "attempts": 2}
    pipeline.run(configure(generation=once))
    assert asked(servers) == [6, 12]
    folder = pipeline.run(configure(answer="5", generation=once))
    assert asked(servers) == [12, 12]  # what became wrong is asked again at once, what became right is not
    assert [[r["status"] for r in row["rationales"]] for row in joined(folder)] == [["duplicate", "ok"]] * 6


def test_choices_that_are_added_later_are_read_by_the_next_run(configure, servers, tmp_path):
    config = configure(count=1)
    pipeline.run(config)
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({**json.loads(path.read_text()), "choices": {"A": "4", "B": "5"}, "answer": "A"}))
    folder = pipeline.run(config)
    assert joined(folder)[0]["choices"] == {"A": "4", "B": "5"}
    assert [(r["answer"], r["verdict"]) for r in joined(folder)[0]["rationales"]] == [("A", "correct"), ("B", "wrong")]
    path.write_text(json.dumps({**json.loads(path.read_text()), "choices": {"A": "5", "B": "4"}}))
    folder = pipeline.run(config)
    assert [(r["answer"], r["verdict"]) for r in joined(folder)[0]["rationales"]] == [("B", "wrong"), ("A", "correct")]
    assert asked(servers) == [1, 1]


def test_more_problems_ask_only_for_the_new_ones(configure, servers):
    pipeline.run(configure())
    folder = pipeline.run(configure(count=8))
    assert asked(servers) == [8, 8]
    assert len(joined(folder)) == 8


def test_settings_that_change_no_answer_redo_no_stage(configure, servers, capsys):
    pipeline.run(configure())
    config = configure()
    slower = [t.model_copy(update={"concurrency": 1, "timeout": 5.0}) for t in config.teachers]
    capsys.readouterr()
    pipeline.run(config.model_copy(update={"teachers": tuple(slower)}))
    assert "generate: done already" in capsys.readouterr().err
    assert asked(servers) == [6, 6]


def test_what_the_student_learns_of_the_rows_can_change_without_asking(configure, servers):
    pipeline.run(configure())
    config = configure()
    said = [t.model_copy(update={"rationale": "text"}) for t in config.teachers]
    pipeline.run(config.model_copy(update={"teachers": tuple(said)}))
    assert asked(servers) == [6, 6]


@pytest.mark.parametrize("stage", ["generate", "join", "train"])
def test_a_run_that_broke_in_any_stage_goes_on_from_there(configure, servers, monkeypatch, stage):
    targets = {
        "generate": "compact_distill.teachers.stages._verify",  # all answers are in, the stage after is not
        "join": "compact_distill.teachers.training_data.json_line",
        "train": "compact_distill.pipeline.train_student",
    }

    def breaks(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(targets[stage], breaks)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(configure())
    folder = pipeline.run(configure())
    assert asked(servers) == [6, 6]
    assert len(joined(folder)) == 6
    assert (folder.student_path / "adapter_model.safetensors").exists()


def test_a_run_that_is_told_to_end_while_it_asks_can_go_on(configure, servers, tmp_path):
    config = configure(count=120)
    path = tmp_path / "signalled.yaml"
    path.write_text(dump_config(config))
    command = [sys.executable, "-c", "from compact_distill.cli import app; app()", "run", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    deadline = time.monotonic() + 120
    while sum(asked(servers)) < 10:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    assert sum(asked(servers)) < 240
    pipeline.run(config)
    assert asked(servers) == [120, 120]  # nothing twice


def test_validation_names_everything_that_is_wrong_at_once(configure, monkeypatch, tmp_path):
    monkeypatch.delenv("MY_KEY")
    config = configure(rationales=["old.jsonl"])
    (tmp_path / "problems.jsonl").write_text('{"id": "p0", "question": "q", "answer": "1"}\n{"id": "p0"}\n')
    with pytest.raises(InputError) as caught:
        pipeline.prepare(config)
    said = "\n".join(caught.value.problems)
    assert said.count("environment variable MY_KEY must hold the key") == 2
    assert "give `teachers:` or `rationales:`, not both" in said
    assert "problems.jsonl, line 2: question must be text" in said
    assert not (tmp_path / "run").exists()


def test_checking_and_planning_leave_nothing_open(configure, tmp_path):
    (tmp_path / "old.jsonl").write_text('{"id": "p0", "text": "The answer is 4."}\n')
    teachers = [
        *configure().model_dump()["teachers"],
        {"name": "old", "backend": "jsonl", "path": str(tmp_path / "old.jsonl")},
        {"name": "local", "backend": "transformers", "model": configure().student},
        {"name": "lab", "backend": "lab", "model": "terse"},
    ]
    config = config_from({**configure().model_dump(), "teachers": teachers})

    def open_now():
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return sorted(os.readlink(link) for link in links if os.path.lexists(link)), threading.active_count()

    stages.check_teachers(config)  # imports what it needs
    before = open_now()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        assert stages.check_teachers(config) == []
        stages.plan(config)
        gc.collect()
    assert open_now() == before
    assert [w for w in caught if w.category is ResourceWarning] == []


NEEDS_MODE = (
    "{% if mode is not defined %}{{ raise_exception('mode must be set') }}{% endif %}{{ messages[-1]['content'] }}"
)


@pytest.mark.parametrize(
    ("template", "says", "remedy"),
    [
        (NEEDS_MODE, "mode must be set", {"template_options": {"mode": "plain"}}),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
            "{{ messages[-1]['content'] }}",
            "System role not supported",
            {"system": None},
        ),
        ("{{ messages | nofilter }}", "chat template cannot be filled in", None),
        ("{{ messages[0]['role'] }}", "must put the question into the prompt", None),
        (None, "model must be a folder or hub name", None),
    ],
)
def test_the_fault_of_a_local_teachers_template_is_one_error_of_validation(
    configure, student, tmp_path, template, says, remedy
):
    model = tmp_path / "teacher"
    if template is None:
        model.mkdir()
    else:
        shutil.copytree(student, model)
        (model / "chat_template.jinja").write_text(template)
    local = {"name": "local", "backend": "transformers", "model": str(model)}
    (message,) = pipeline.validate_run(configure(teachers=[local]))
    assert message.startswith("teacher local: ")
    assert says in message
    assert template is None or "keys of its own in `teachers:`" in message
    if remedy is not None:
        assert pipeline.validate_run(configure(teachers=[{**local, **remedy}])) == []


def test_a_local_teacher_on_a_cluster_is_looked_at_there(configure):
    pytest.importorskip("ray")
    there = {"name": "t", "backend": "transformers", "model": "/models/on/the/cluster", "ray": {"actors": 1}}
    assert pipeline.validate_run(configure(teachers=[there])) == []


def test_the_python_call_asks_stores_joins_and_resumes(servers, tmp_path, problems):
    teachers = [
        {"name": name, "model": "m", "base_url": server.url}
        for name, server in zip(("right", "wrong"), servers, strict=True)
    ]
    instances = compact_distill.ask(problems(3), teachers, tmp_path / "pool", rejection="correct_only")
    assert [instance.teachers for instance in instances] == [("right", "wrong")] * 3
    assert [[bool(r.text) for r in instance.rationales] for instance in instances] == [[True, False]] * 3
    assert compact_distill.ask(problems(3), teachers, tmp_path / "pool", rejection="correct_only") == instances
    assert asked(servers) == [3, 3]


def test_the_python_call_compares_with_todays_gold_answers(servers, tmp_path):
    config = [{"name": "t", "model": "m", "base_url": servers[0].url}]
    for gold, verdict in (("5", "wrong"), ("4", "correct"), ("5", "wrong")):
        (instance,) = compact_distill.ask([Problem("p0", "problem p0", gold)], config, tmp_path / "pool")
        assert instance.rationales[0].verdict == verdict
    assert asked(servers)[0] == 1


def test_the_python_call_holds_problems_in_memory_to_the_rules_of_a_file(servers, tmp_path):
    config = [{"name": "t", "model": "m", "base_url": servers[0].url}]
    wrong = [Problem("p0", "problem p0", "4"), Problem("p0", "problem p1", "4"), Problem("p2", "problem p2", " ")]
    with pytest.raises(InputError) as caught:
        compact_distill.ask(wrong, config, tmp_path / "pool")
    said = "\n".join(caught.value.problems)
    assert "problems: id 'p0' stands 2 times" in said
    assert "problems, item 3: answer must be the gold answer" in said
    assert servers[0].seen == []


def test_the_python_call_works_where_an_event_loop_runs_already(servers, tmp_path, problems):
    async def notebook():
        return compact_distill.ask(problems(2), [{"name": "t", "model": "m", "base_url": servers[0].url}], tmp_path)

    assert len(asyncio.run(notebook())) == 2


def test_the_python_call_names_everything_that_is_wrong_at_once(tmp_path, problems):
    teachers = [{"name": "t", "model": "m"}, {"name": "u", "backend": "lab", "model": "terse", "nokey": 1}]
    with pytest.raises(InputError) as caught:
        compact_distill.ask(problems(1), teachers, tmp_path, max_errors=2)
    said = "\n".join(caught.value.problems)
    assert "base_url" in said
    assert "nokey" in said
    assert "max_errors" in said
    assert list(tmp_path.iterdir()) == []


def test_training_before_asking_says_what_to_do(configure, servers):
    with pytest.raises(RunError, match="`compact generate` asks the teachers"):
        pipeline.train(configure())
    stages.ask_teachers(configure())
    folder = pipeline.train(configure())
    assert (folder.student_path / "adapter_model.safetensors").exists()
    assert asked(servers) == [6, 6]


def test_other_ranks_wait_for_the_first_and_ask_nothing(configure, servers, tmp_path):
    config = configure()
    found = []
    waiting = threading.Thread(
        target=lambda: found.append(
            stages.rationales(config, RunFolder.follow(config.output), stages.problem_stream(config))
        ),
        daemon=True,
    )
    waiting.start()
    time.sleep(0.2)
    assert found == []
    path = stages.ask_teachers(config)
    waiting.join(10)
    assert found == [path]
    assert asked(servers) == [6, 6]


def test_an_answer_that_stays_empty_is_not_asked_for_by_the_next_run(configure, servers, quick):
    right, _ = servers
    behave, broken = right.behave, True
    right.behave = lambda b, n: says("") if broken and "p3?" in str(b) else behave(b, n)
    pipeline.run(configure())
    assert asked(servers) == [8, 6]  # three times within the run
    stages.ask_teachers(configure())
    assert asked(servers) == [8, 6]


def test_generate_prints_where_the_rationales_are(configure, servers, compact):
    result = compact("generate", configure())
    assert result.stdout.startswith("rationales: ")
    assert result.stdout.strip().endswith("rationales.jsonl")


def test_a_dry_run_prints_requests_tokens_and_cost_and_sends_nothing(configure, servers, compact, monkeypatch):
    monkeypatch.delenv("MY_KEY")
    config = configure(count=100)
    prices = {"prompt": 1.0, "completion": 2.0}
    teachers = [t.model_copy(update={"system": None, "max_tokens": 50}) for t in config.teachers]
    config = config_from({**config.model_dump(), "teachers": [{**t.model_dump(), "prices": prices} for t in teachers]})
    text = compact("generate", config, "--dry-run").stdout
    lines = text.splitlines()
    tokens = sum(-(-len(f"problem p{i}?") // 4) for i in range(100))
    cost, most = tokens / 1e6, (tokens + 2 * 5000) / 1e6
    assert lines[1].split() == ["right", "100", "0", "100", f"~{tokens}", f"{cost:.4f}", "to", f"{most:.4f}"]
    assert f"cost at most {2 * most:.4f}" in lines[-1]
    assert [len(server.seen) for server in servers] == [0, 0]


def test_max_errors_may_be_given_with_the_command(configure, servers, compact):
    servers[1].behave = lambda body, n: fails(400) if "problem" in str(body) else says("ready")
    result = compact("generate", configure(), code=2)
    assert "6 of 12 rationales got no answer, more than max_errors (0.1) allows" in result.stderr
    compact("generate", configure(), "--max-errors", "0.5")


def test_verify_and_teachers_print_the_table(configure, servers, compact):
    compact("generate", configure())
    text = compact("verify", configure()).stdout
    assert text.startswith("verified 12 answers\n")
    rows = {line.split()[0]: line.split() for line in text.splitlines()[2:]}
    assert rows["right"][1:5] == ["6", "6", "6", "100.0%"]
    assert rows["wrong"][1:5] == ["6", "6", "6", "0.0%"]
    assert rows["right"][-1] == "0.0%"  # they never agree
    assert compact("teachers", configure()).stdout == text.partition("\n")[2]
    assert asked(servers) == [6, 6]


def test_the_labs_scripted_teachers_go_the_same_way(configure, tmp_path):
    asked = arithmetic("train", 8, seed=0)
    rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in asked]
    config = configure().model_dump()
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config["teachers"] = [{"name": n, "backend": "lab", "model": n} for n in ("terse", "verbose", "erring", "foreign")]
    folder = pipeline.run(config_from(config))
    assert (folder.student_path / "adapter_model.safetensors").exists()
    assert [[r["teacher"] for r in row["rationales"]] for row in joined(folder)] == [
        ["terse", "verbose", "erring", "foreign"]
    ] * 8
