"""Steps as processes: order, failure of one alone, and that none outlives its study."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from compact_distill.runs.files import Lock
from compact_distill.study.jobs import THREADS, StudyStep, run_jobs, threads_a_step

FINE = ["platform:python_version"]
FAILS = ["compact_distill.errors:nearest"]  # called without its arguments


def test_a_step_waits_for_what_it_needs_and_one_that_fails_stops_only_those_that_need_it(tmp_path):
    order = []

    def noted(name, command):
        return StudyStep(
            name, lambda: order.append(name) or command, {"b": ("a",), "d": ("c",), "e": ("d",)}.get(name, ())
        )

    jobs = [noted("a", FINE), noted("b", FINE), noted("c", FAILS), noted("d", FINE), noted("e", FINE), noted("f", FINE)]
    failed = run_jobs(jobs, 2, {}, tmp_path)
    assert order.index("a") < order.index("b")
    assert set(order) == {"a", "b", "c", "f"}
    assert set(failed) == {"c", "d", "e"}
    assert "missing 2 required positional arguments" in failed["c"]
    assert (failed["d"], failed["e"]) == ("needs c, which failed", "needs d, which failed")


def test_the_reason_of_a_failure_is_this_attempts_and_not_an_earlier_ones(tmp_path, monkeypatch):
    (tmp_path / "silent.py").write_text("import os\ndef end():\n    os._exit(3)\n")
    monkeypatch.chdir(tmp_path)  # where the step's process finds it
    (tmp_path / "a.log").write_text("error: the disk is full\n")
    assert run_jobs([StudyStep("a", lambda: ["silent:end"])], 1, {}, tmp_path) == {"a": "exit code 3"}


def test_as_many_steps_run_at_a_time_as_was_asked_for(tmp_path):
    pair, running, seen = threading.Barrier(2, timeout=60), [], []

    def command():
        running.append(1)
        seen.append(len(running))
        pair.wait()  # until another step is there
        running.pop()

    assert run_jobs([StudyStep(f"{n}", command) for n in range(6)], 2, {}, tmp_path) == {}
    assert max(seen) == 2


def test_a_step_with_nothing_to_do_counts_as_done(tmp_path):
    assert run_jobs([StudyStep("a", lambda: None), StudyStep("b", lambda: FINE, ("a",))], 1, {}, tmp_path) == {}


def test_a_step_that_cannot_be_made_fails_alone(tmp_path):
    failed = run_jobs([StudyStep("a", lambda: 1 / 0), StudyStep("b", lambda: FINE)], 1, {}, tmp_path)
    assert failed == {"a": "ZeroDivisionError: division by zero"}


def test_threads_are_the_studys_whatever_the_shell_says_now(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    tell = f"import os\ndef tell():\n    print(*(os.environ.get(name) for name in {THREADS}))\n"
    (tmp_path / "told.py").write_text(tell)
    monkeypatch.chdir(tmp_path)  # where the step's process finds it
    assert run_jobs([StudyStep("a", lambda: ["told:tell"])], 1, dict.fromkeys(THREADS, "5"), tmp_path) == {}
    assert (tmp_path / "a.log").read_text() == "5 5\n"


@pytest.mark.parametrize(
    ("omp", "mkl", "threads"),
    [("3", None, 3), ("3,2", None, 3), (None, "2", 2), ("3", "2", 2), (None, None, 4), ("many", "0", 4)],
)
def test_a_new_study_takes_the_shells_threads_else_its_share_of_the_cores(monkeypatch, omp, mkl, threads):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for name, value in (("OMP_NUM_THREADS", omp), ("MKL_NUM_THREADS", mkl)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert threads_a_step(2) == threads


SLEEPER = """
import signal, sys
from pathlib import Path
if sys.argv[2] == "background":  # as `compact study ... &` in a script
    signal.signal(signal.SIGINT, signal.SIG_IGN)
from compact_distill.study.jobs import StudyStep, hold, run_jobs
out = Path(sys.argv[1])
with hold(out) as lock:
    run_jobs([StudyStep("wait", lambda: ["signal:pause"])], 1, {}, out / "logs", lock)
"""


@pytest.mark.parametrize("started", ["by hand", "background"])
@pytest.mark.parametrize("wait", [0.0, 1.0])  # seconds: a step that starts, one that works
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_step_ends_with_the_study_that_started_it_and_gives_the_lock_back(tmp_path, number, code, wait, started):
    study = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path), started], stderr=subprocess.PIPE)
    for line in study.stderr:
        if b"wait started" in line:
            break
    time.sleep(wait)
    study.send_signal(number)
    assert study.wait(120) == code
    with Lock(tmp_path / ".study.lock", tmp_path, shared=True, patience=120.0):  # fails while the step holds it
        pass
