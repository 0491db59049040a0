"""The run folder: locks, whole files, stages, and a trace that survives a crash."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compact_distill.errors import RunError
from compact_distill.records import RationaleStatus, ScoreRow
from compact_distill.runs.files import (
    atomic_write,
    content_hash,
    cut_torn_line,
    fingerprint,
    json_line,
    output_problem,
    read_jsonl,
)
from compact_distill.runs.folder import RunFolder, ScoreTrace


def row(name: str) -> ScoreRow:
    return ScoreRow(
        id=name,
        teachers=("a", "b"),
        consensus=(0.25, None),
        adaptability=(1.5, None),
        difficulty=(2.0, None),
        weights=(1.0, 0.0),
        statuses=(RationaleStatus.OK, RationaleStatus.MISSING),
        extra_scores={"length": (3.0, None)},
    )


def in_another_process(code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


# ---- claiming and opening


def test_a_new_run_has_a_manifest_and_can_be_opened(tmp_path):
    with RunFolder.claim(tmp_path / "deep" / "run") as run:
        run.write_config("student: é\n")
        run.update_manifest(seeds={"seed": 1})
    again = RunFolder.open(tmp_path / "deep" / "run")
    assert again.manifest["seeds"] == {"seed": 1}
    assert again.manifest["format"] == 1
    assert again.config_path.read_text(encoding="utf-8") == "student: é\n"


def test_two_processes_cannot_write_the_same_run(tmp_path):
    code = f"""
        from compact_distill.runs.folder import RunFolder
        run = RunFolder.claim({str(tmp_path)!r})
        print("claimed", flush=True)
        input()
    """
    other = in_another_process(code)
    try:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(RunError, match=f"is being written by process {other.pid} on "):
            RunFolder.claim(tmp_path)
        RunFolder.open(tmp_path)  # reading is always possible
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        RunFolder.claim(tmp_path).close()
    finally:
        other.kill()
        other.communicate()


def test_one_process_cannot_claim_a_run_twice(tmp_path):
    with RunFolder.claim(tmp_path), pytest.raises(RunError, match="by this very process"):
        RunFolder.claim(tmp_path / ".." / tmp_path.name)
    RunFolder.claim(tmp_path).close()


def test_a_run_open_for_reading_cannot_be_written(tmp_path):
    RunFolder.claim(tmp_path).close()
    with pytest.raises(RunError, match="open for reading only"):
        RunFolder.open(tmp_path).write_config("x")


def test_a_closed_run_cannot_be_written(tmp_path):
    run = RunFolder.claim(tmp_path)
    run.close()
    with pytest.raises(RunError, match="open for reading only"), run.stage("train", "a"):
        pass


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="holds other files; choose another"):
        RunFolder.claim(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert "is a file" in output_problem(tmp_path / "thesis.tex")
    assert output_problem(tmp_path / "new") is None


def test_no_run_a_damaged_and_a_newer_manifest_are_told_apart(tmp_path):
    with pytest.raises(RunError, match=r"holds no manifest\.json"):
        RunFolder.open(tmp_path)
    manifest = tmp_path / "manifest.json"
    for broken in ('{"format": 1, "stages"', "[]", "{}", '{"format": 1, "stages": 3}'):
        manifest.write_text(broken)
        with pytest.raises(RunError, match="is damaged"):
            RunFolder.open(tmp_path)
    manifest.write_text('{"format": 2, "stages": {}}')
    with pytest.raises(RunError, match="must have format 1, got 2"):
        RunFolder.claim(tmp_path)
    manifest.write_text('{"format": 1, "stages": {}}')
    RunFolder.claim(tmp_path).close()  # the failed attempts gave the lock back


# ---- stages


def test_a_finished_stage_is_done_for_the_same_inputs_only(tmp_path):
    with RunFolder.claim(tmp_path) as run:
        assert not run.stage_was_begun("train", "a")
        with run.stage("train", "a") as summary:
            summary["steps"] = 7
            assert not run.stage_is_done("train", "a")
            assert RunFolder.open(tmp_path).stage_was_begun("train", "a")
        run.finish()
    again = RunFolder.open(tmp_path)
    assert again.stage_is_done("train", "a")
    assert not again.stage_is_done("train", "b")
    assert not again.stage_is_done("eval", "a")
    assert again.stage_summary("train") == {"steps": 7}
    assert again.manifest["finished"] is not None


def test_a_stage_that_fails_is_begun_but_not_done(tmp_path):
    run = RunFolder.claim(tmp_path)
    with pytest.raises(ZeroDivisionError), run.stage("train", "a"):
        _ = 1 / 0
    run.close()
    again = RunFolder.open(tmp_path)
    assert again.stage_was_begun("train", "a")
    assert not again.stage_is_done("train", "a")


def test_a_stage_begun_anew_unfinishes_the_run(tmp_path):
    with RunFolder.claim(tmp_path) as run:
        run.finish()
        with run.stage("train", "b"):
            assert run.manifest["finished"] is None


def trained(path, weights="old", inputs="a"):
    """A run folder with a finished student, as training leaves it; open for writing."""
    run = RunFolder.claim(path)
    run.write_config("student: x\n")
    with run.stage("train", inputs, run.training_outputs):
        (run.student_path / "checkpoint-3").mkdir(parents=True)
        (run.student_path / "model.safetensors").write_text(weights)
        with ScoreTrace(run.scores_path) as trace:
            trace.append([row("p")], epoch=0, step=0)
    for folder in ("base", "student", "checkpoint-3"):
        (run.eval_path / folder).mkdir(parents=True, exist_ok=True)
        (run.eval_path / folder / "gsm8k.json").write_text("{}")
    (run.eval_path / "changes.json").write_text("{}")
    return run


def test_a_student_of_other_inputs_is_moved_into_a_run_folder_of_its_own(tmp_path):
    with trained(tmp_path) as run:
        (run.student_path / "my notes").mkdir()  # a user's own
        aside = run.set_aside()
        assert run.set_aside() is None  # there is nothing left
        assert not run.student_path.exists()
        assert list(run.read_scores()) == []
        assert sorted(p.name for p in run.eval_path.iterdir()) == ["base"]  # the base has not changed
        assert not run.stage_was_begun("train", "a")
    then = RunFolder.open(aside)
    assert then.stage_is_done("train", "a")
    assert then.damage("train", verify=True) == {}
    assert (then.student_path / "my notes").is_dir()
    assert sorted(p.name for p in then.eval_path.iterdir()) == ["base", "changes.json", "checkpoint-3", "student"]
    assert then.config_path.read_text() == "student: x\n"


def test_a_student_that_was_set_aside_can_be_taken_back(tmp_path):
    with trained(tmp_path) as run:
        aside = run.set_aside()
        assert run.take_back("b") is None
        assert run.take_back("a") == aside
        assert not aside.exists()
        assert run.stage_is_done("train", "a")
        assert run.damage("train", verify=True) == {}
        assert sorted(p.name for p in run.eval_path.iterdir()) == ["base", "changes.json", "checkpoint-3", "student"]


def test_a_student_that_was_damaged_where_it_lay_aside_is_not_taken_back(tmp_path):
    with trained(tmp_path) as run:
        aside = run.set_aside()
        (aside / "student" / "model.safetensors").write_text("OLD")  # as many bytes
        assert run.take_back("a") is None
        assert (aside / "student" / "model.safetensors").read_text() == "OLD"


def test_what_was_measured_and_traced_is_moved_aside_where_its_student_is_gone(tmp_path):
    with trained(tmp_path) as run:
        shutil.rmtree(run.student_path)
        aside = run.set_aside()
    assert (aside / "eval" / "student" / "gsm8k.json").is_file()
    assert len(list(RunFolder.open(aside).read_scores())) == 1


def test_what_is_made_again_at_once_needs_no_folder_of_its_own(tmp_path):
    with RunFolder.claim(tmp_path) as run:
        run.data_path.write_text("{}\n")
        run.student_path.mkdir()
        assert run.set_aside() is None
    assert not list(tmp_path.glob("before.*"))


def test_what_came_to_a_student_that_lay_aside_stays_there_when_it_is_taken_back(tmp_path):
    with trained(tmp_path) as run:
        aside = run.set_aside()
        (tmp_path / "notes.txt").write_text("mine")
        (aside / "notes.txt").write_text("about the old one")
        (aside / "eval" / "base" / "svamp.json").write_text("measured since")
        assert run.take_back("a") == aside
        assert run.damage("train", verify=True) == {}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    left = sorted(path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file())
    assert left == ["eval/base/gsm8k.json", "eval/base/svamp.json", "notes.txt"]


def test_a_student_that_lies_aside_is_left_there_while_somebody_works_on_it(tmp_path):
    with trained(tmp_path) as run:
        aside = run.set_aside()
        with RunFolder.claim(aside):
            assert run.take_back("a") is None
            assert (aside / "student" / "model.safetensors").read_text() == "old"
        assert run.take_back("a") == aside


def test_two_students_that_are_set_aside_in_one_second_do_not_meet(tmp_path):
    with trained(tmp_path) as run:
        first = run.set_aside()
    with trained(tmp_path, "new", "b") as run:
        second = run.set_aside()
    assert first != second
    assert (second / "student" / "model.safetensors").read_text() == "new"
    assert (first / "student" / "model.safetensors").read_text() == "old"


def test_only_who_says_discard_loses_a_student(tmp_path):
    with trained(tmp_path) as run:
        assert run.set_aside(discard=True) is None
    assert not list(tmp_path.glob("before.*"))
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("harm", "says", "needs_hashes"),
    [
        (lambda file: file.unlink(), "is missing", False),
        (lambda file: file.write_text(""), "has 0 bytes, not 3", False),
        (lambda file: file.write_text("OLD"), "has other contents", True),
    ],
)
def test_what_a_stage_wrote_is_known_when_it_has_changed(tmp_path, harm, says, needs_hashes):
    with trained(tmp_path) as run:
        harm(run.student_path / "model.safetensors")
        assert (run.damage("train") == {}) == needs_hashes
        wrong = run.damage("train", verify=True)
        assert list(wrong) == ["student/model.safetensors"]
        assert says in wrong["student/model.safetensors"]
        aside = run.put_damage_aside(wrong)
        assert (aside is None) == (says == "is missing")
        assert not (run.student_path / "model.safetensors").exists()


def test_a_run_whose_manifest_is_gone_is_known_by_its_lock(tmp_path, capsys):
    trained(tmp_path).close()
    (tmp_path / "manifest.json").unlink()
    assert output_problem(tmp_path) is None
    with RunFolder.claim(tmp_path) as run:
        assert run.manifest["stages"] == {}
    assert "manifest.json is gone; a new one is begun" in capsys.readouterr().err
    assert (tmp_path / "student" / "model.safetensors").read_text() == "old"
    (tmp_path / "manifest.json").unlink()
    (tmp_path / ".lock").write_text("of some other program")
    assert "holds other files" in output_problem(tmp_path)


# ---- the trace


def test_a_trace_line_holds_scores_weights_and_statuses(tmp_path):
    trace = ScoreTrace(tmp_path / "scores.jsonl")
    trace.append([row("p1")], epoch=0.5, step=3)
    assert list(read_jsonl(trace.path)) == [
        {
            "epoch": 0.5,
            "step": 3,
            "id": "p1",
            "teachers": ["a", "b"],
            "consensus": [0.25, None],
            "adaptability": [1.5, None],
            "difficulty": [2.0, None],
            "weights": [1.0, 0.0],
            "extra_scores": {"length": [3.0, None]},
            "statuses": ["ok", "missing"],
        }
    ]
    trace.close()


def test_truncating_keeps_what_was_read_before_the_step(tmp_path):
    trace = ScoreTrace(tmp_path / "scores.jsonl")
    for step in range(4):
        trace.append([row(f"p{step}"), row(f"q{step}")], epoch=0, step=step)
    assert trace.truncate(3) == 2
    trace.append([row("again")], epoch=0, step=3)
    trace.close()
    assert [r["id"] for r in read_jsonl(trace.path)] == ["p0", "q0", "p1", "q1", "p2", "q2", "again"]
    assert trace.truncate(0) == 7
    assert ScoreTrace(tmp_path / "none.jsonl").truncate(5) == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_torn_anywhere_keeps_its_whole_lines_and_goes_on(tmp_path, data):
    path = tmp_path / "scores.jsonl"
    whole = "".join(json_line({"step": i, "text": "é" * 5}) for i in range(4)).encode()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert [r["step"] for r in read_jsonl(path)] == list(range(complete))
    trace = ScoreTrace(path)
    trace.append([row("next")], epoch=0, step=9)
    trace.close()
    assert [r["step"] for r in read_jsonl(path)] == [*range(complete), 9]


def test_a_torn_line_longer_than_a_block_is_cut(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"{}\n" + b"x" * 200_000)
    cut_torn_line(path)
    assert path.read_bytes() == b"{}\n"
    path.write_bytes(b"x" * 200_000)
    cut_torn_line(path)
    assert path.read_bytes() == b""


def test_a_broken_line_inside_a_trace_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"step": 0}\nnonsense\n{"step": 1}\n')
    with pytest.raises(RunError, match="line 2: broken JSON"):
        list(read_jsonl(path))
    path.write_text("[1]\n")
    with pytest.raises(RunError, match="line 1: must be an object"):
        list(read_jsonl(path))


def test_a_killed_writer_leaves_only_whole_rows(tmp_path):
    code = f"""
        from compact_distill.records import RationaleStatus, ScoreRow
        from compact_distill.runs.folder import ScoreTrace
        trace = ScoreTrace({str(tmp_path / "scores.jsonl")!r})
        step = 0
        while True:
            row = ScoreRow(str(step), ("a",), (0.0,), (0.0,), (0.0,), (1.0,), (RationaleStatus.OK,))
            trace.append([row], epoch=0, step=step)
            step += 1
            if step == 50:
                print("go", flush=True)
    """
    writer = in_another_process(code)
    assert writer.stdout.readline() == "go\n"
    writer.kill()
    writer.communicate()
    steps = [r["step"] for r in read_jsonl(tmp_path / "scores.jsonl")]
    assert len(steps) >= 50
    assert steps == list(range(len(steps)))


def test_nan_never_reaches_a_file():
    with pytest.raises(ValueError, match="JSON compliant"):
        json_line({"weights": [float("nan")]})


def test_half_a_surrogate_pair_can_be_written():
    line = json_line({"id": "\ud800é"})
    assert json.loads(line.encode("utf-8")) == {"id": "\ud800é"}
    assert "é" in json_line({"id": "é"})


# ---- whole files and fingerprints


def test_a_file_that_fails_halfway_leaves_the_old_one(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def write_and_fail() -> None:
        with atomic_write(path) as file:
            file.write("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_aside_is_removed(tmp_path):
    RunFolder.claim(tmp_path).close()
    (tmp_path / ".manifest.json.123.tmp").write_text("half")
    RunFolder.claim(tmp_path).close()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_users_own_hidden_files_are_not_taken_for_what_a_killed_writer_left(tmp_path):
    RunFolder.claim(tmp_path).close()
    (tmp_path / ".cache.1.tmp").mkdir()
    for name in (".notes.tmp", ".thesis.tex.7.tmp", ".manifest.json.best.tmp", ".cache.1.tmp/file"):
        (tmp_path / name).write_text("mine")
    RunFolder.claim(tmp_path).close()
    assert len(list(tmp_path.rglob(".*.tmp"))) == 4


@pytest.mark.parametrize("name", ["../precious", "student/../../precious", "ABSOLUTE"])
def test_a_manifest_that_names_files_elsewhere_is_damaged_and_they_stay(tmp_path, name):
    precious = tmp_path / "precious"
    precious.write_text("years of work")
    trained(tmp_path / "run").close()
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["stages"]["train"]["outputs"][name.replace("ABSOLUTE", str(precious))] = [1, "0"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="is no file of the run"):
        RunFolder.open(tmp_path / "run")
    with RunFolder.claim(tmp_path / "run") as run:
        run.put_damage_aside(run.damage("train"))
    assert precious.read_text() == "years of work"


def test_fingerprints_ignore_key_order_and_see_every_value():
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1, "b": [2, 3]}) != fingerprint({"a": 1, "b": [3, 2]})


def test_content_hashes_follow_bytes_and_names(tmp_path):
    folder = tmp_path / "student"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.json").write_text("1")
    (folder / "sub" / "b.json").write_text("2")
    before = content_hash(folder)
    (folder / ".cache").write_text("hidden")
    os.utime(folder / "a.json", (0, 0))
    assert content_hash(folder) == before
    (folder / "sub" / "b.json").write_text("3")
    assert content_hash(folder) != before
    (folder / "sub" / "b.json").write_text("2")
    assert content_hash(folder) == before
    (folder / "a.json").rename(folder / "c.json")
    assert content_hash(folder) != before
    # sha256 of "1", a known value
    assert content_hash(folder / "c.json") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


def test_reading_runs_needs_no_torch():
    code = "import sys, compact_distill.runs.folder; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("stages", [{}, {"train": {"inputs": "a", "finished": "then"}}])
def test_a_manifest_whose_word_of_the_end_was_flipped_is_no_finished_run(tmp_path, stages, capsys):
    with RunFolder.claim(tmp_path) as run:
        run.update_manifest(stages=stages)
        run.finish()
    manifest = tmp_path / "manifest.json"
    found = json.loads(manifest.read_text())
    of = found["stages"]["train"] if stages else found  # of a stage that is damage, and the manifest is kept beside
    of["finishee"] = of.pop("finished")
    manifest.write_text(json.dumps(found))
    with RunFolder.claim(tmp_path) as run:
        assert run.manifest["finished"] is None
        assert run.manifest["stages"] == {}
    assert bool(list(tmp_path.glob("manifest.json.*"))) == bool(stages)
    assert ("was damaged" in capsys.readouterr().err) == bool(stages)
