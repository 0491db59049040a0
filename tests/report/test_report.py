"""`compact report` and `compact compare`: what they print, and that errors are messages."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from typer.testing import CliRunner

from compact_distill.cli import app
from compact_distill.evaluation.result_files import write_result
from compact_distill.report import html, is_current, write_report
from compact_distill.report import read as reading
from report.synthetic import make_run


def compact(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    return [make_run(base / name, problems=6, seed=i, config={"seed": i}) for i, name in enumerate("ab")]


def test_report_writes_the_page_and_prints_the_main_figures(runs):
    result = compact("report", runs[0])
    assert (runs[0] / "report.html").read_text().startswith("<!doctype html>")
    assert result.stdout.startswith("The student got better at gsm8k (+13.0 percentage points)")
    assert result.stdout.endswith(f"report: {runs[0] / 'report.html'}\n")


def test_a_report_reads_each_file_once_and_renders_its_page_once(runs, monkeypatch):
    read, rendered = [], []
    rows, fragment = reading.read_jsonl, html.fragment
    monkeypatch.setattr(reading, "read_jsonl", lambda path, **how: read.append(path) or rows(path, **how))
    monkeypatch.setattr(html, "fragment", lambda name, **values: rendered.append(name) or fragment(name, **values))
    compact("report", runs[0])
    assert {path.name for path in read} >= {"data.jsonl", "scores.jsonl", "training_log.jsonl"}
    assert len(read) == len(set(read))
    assert rendered == ["page.html.jinja"]


def test_report_of_several_runs_compares_them_and_exports(runs, tmp_path):
    compact("report", *runs, "--out", tmp_path / "c.html", "--export", tmp_path / "figures", "--no-png")
    assert "2 runs compared" in (tmp_path / "c.html").read_text()
    assert (tmp_path / "figures" / "compare_accuracy.csv").is_file()
    assert not list((tmp_path / "figures").glob("*.png"))


def test_report_of_several_prints_a_row_a_run_and_the_settings_that_differ(runs, tmp_path):
    lines = compact("report", *runs, "--out", tmp_path / "c.html").stdout.splitlines()[:-1]
    assert lines[0].startswith("a and b are equal on gsm8k and svamp")
    assert [line.split()[0] for line in lines[2:5]] == ["run", "a", "b"]
    changes = [line.split() for line in lines if line.startswith("b  ") and "gsm8k" in line]
    assert [change[:3] for change in changes] == [["b", "gsm8k", "+0.0"]]  # both are right on 61 %
    assert lines[-1].split() == ["seed", "0", "1"]


def test_students_that_were_not_asked_the_same_are_not_compared_aloud(runs, tmp_path):
    other = shutil.copytree(runs[1], tmp_path / "other")
    path = other / "eval" / "student" / "svamp.json"
    result = json.loads(path.read_text())
    result["data"]["hash"] = "other rows"
    del result["seal"]
    write_result(path, result)
    compact("report", runs[0], other, "--out", tmp_path / "c.html")
    assert "svamp is not compared with a: " in (tmp_path / "c.html").read_text()


def test_a_folder_that_is_no_run_is_a_message(tmp_path):
    result = compact("report", tmp_path, code=2)
    assert "error:" in result.stderr
    assert "must be a run folder" in result.stderr


def test_a_page_is_current_while_the_contents_it_was_made_of_stay(tmp_path):
    run = make_run(tmp_path / "run", problems=6)
    assert not is_current(run)  # there is no page yet
    page = write_report([run])
    assert is_current(run)
    for path in run.rglob("*.json*"):
        os.utime(path, (2e9, 2e9))  # newer times, the same contents
    assert is_current(run)
    assert is_current(shutil.copytree(run, tmp_path / "moved"))
    scores = run / "scores.jsonl"
    old, times = scores.read_text(), scores.stat()
    scores.write_text(old.replace("qwq", "qwp"))
    os.utime(scores, ns=(times.st_atime_ns, times.st_mtime_ns))  # other contents of the same size, the same times
    assert not is_current(run)
    scores.write_text(old)
    assert is_current(run)
    page.write_bytes(page.read_bytes()[:-10])
    assert not is_current(run)  # cut
    write_report([run])
    (run / "eval" / "student" / "svamp.json").unlink()
    assert not is_current(run)


def test_a_file_that_is_there_is_moved_aside_and_a_runs_own_is_never_written(runs, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert "was there already" in compact("report", runs[0], "--out", page).stderr
    assert [path.read_text() for path in tmp_path.glob("page.html.*")] == ["mine"]
    write_report([runs[0]], page)  # the same again moves nothing
    assert len(list(tmp_path.glob("page.html*"))) == 2
    for name in ("manifest.json", "scores.jsonl", "eval/base/x.html"):
        assert "a file that a run writes" in compact("report", runs[0], "--out", runs[0] / name, code=2).stderr


def test_figures_are_exported_into_a_folder_of_their_own(runs, tmp_path):
    figures = tmp_path / "figures"
    compact("report", runs[0], "--export", figures, "--no-png", "--out", tmp_path / "a.html")
    first = sorted(path.name for path in figures.iterdir())
    compact("report", runs[0], "--export", figures, "--no-png", "--out", tmp_path / "a.html")
    (aside,) = tmp_path.glob("figures.*")
    assert sorted(path.name for path in aside.iterdir()) == sorted(p.name for p in figures.iterdir()) == first
    (figures / "notes.txt").write_text("mine")
    for folder in (figures, runs[0], runs[0].parent):
        said = compact("report", runs[0], "--export", folder, "--no-png", "--out", tmp_path / "b.html", code=2).stderr
        assert "must be a folder for figures alone" in said


def test_a_page_of_several_runs_or_elsewhere_is_not_the_runs_own(tmp_path):
    run = make_run(tmp_path / "run", problems=6)
    write_report([run], tmp_path / "elsewhere.html")
    assert not is_current(run)
