"""Which figures a run's page has, and the comparison of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compact_distill.report import RunData, read_run, verdict, write_report
from compact_distill.report.pages import compare_sections, differing_settings, overview, run_names
from compact_distill.report.read import TaskResult
from compact_distill.report.trace import arrange_trace
from report.synthetic import make_run


def compare_figures(runs, paired=()):
    return [figure for section in compare_sections(runs, paired) for figure in section.figures]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    settings = [{"seed": 1, "train": {"lr": 1e-5}}, {"seed": 1, "train": {"lr": 1e-4}}, {"seed": 1}]
    for i, (name, config) in enumerate(zip(("a/run", "b/run", "c"), settings, strict=True)):
        make_run(base / name, problems=8, seed=i, teachers=["t1", "t2"][: 1 + i % 2], config=config)
    return [read_run(base / name) for name in ("a/run", "b/run", "c")]


def test_runs_of_one_name_are_told_apart_by_their_folders(three):
    assert run_names(three) == ["a/run", "b/run", f"{three[2].path.parent.name}/c"]
    assert run_names([three[2], three[2]])[1].endswith("(2)")
    assert run_names(three[1:]) == ["run", "c"]


def test_settings_that_differ_are_listed_with_their_values(three):
    table = differing_settings(three)
    assert table.rows == [("train.lr", "1e-05", "0.0001", "–")]


def test_the_overview_has_a_row_a_run(three):
    table = overview(three)
    assert [row[0] for row in table.rows] == run_names(three)
    assert table.rows[0][1:5] == [61.0, 69.0, 70.5, 62.0]


def test_the_comparison_shows_results_weights_losses_and_paired_changes(three, tmp_path):
    document = json.loads((three[0].path / "eval" / "changes.json").read_text())
    assert [f.key for f in compare_figures(three)] == ["compare_accuracy", "compare_weights", "compare_loss"]
    found = {f.key: f for f in compare_figures(three, [document, document])}
    assert ("b/run", "gsm8k", "learned", "accuracy", 200, 0.13, 0.09, 0.17, 31, 7, 0.0001) in found[
        "compare_change"
    ].table.rows
    losses = [row for row in found["compare_loss"].table.rows if row[0] == "b/run"]
    logged = [json.loads(line) for line in (three[1].path / "training_log.jsonl").read_text().splitlines()]
    assert [row[2] for row in losses] == pytest.approx([row["loss"] for row in logged if "loss" in row])
    page = write_report([run.path for run in three], tmp_path / "c.html", paired=[document, document]).read_text()
    assert "What differs in their settings" in page


def result(accuracy, margin):
    low, high = accuracy - margin, accuracy + margin
    return TaskResult("student", "x", "learned", 200, accuracy, low, high, 0, 0, 5.0)


def against_first(difference, margin):
    ends = {"before": {"value": 0.5}, "after": {"value": 0.5 + difference}}
    measure = ends | {"difference": difference, "low": difference - margin, "high": difference + margin}
    return {"changes": [{"task": "x", "rows": 200, "metric": "accuracy", "metrics": {"accuracy": measure}}]}


@pytest.mark.parametrize(
    ("accuracies", "margin", "paired", "words"),
    [
        ((0.5, 0.6), 0.02, None, "b did best on x: 60.0 %."),
        ((0.5, 0.6), 0.2, None, "b did best on x: 60.0 %, but that may be chance."),
        ((0.5, 0.6), 0.2, [0.05], "b did best on x: 60.0 %."),  # the paired test sees more
        ((0.6, 0.5), 0.2, [0.05], "a did best on x: 60.0 %."),
        ((0.6, 0.5), 0.02, [0.2], "a did best on x: 60.0 %, but that may be chance."),
        ((0.5, 0.6, 0.4), 0.2, [0.05, 0.05], "b did best on x: 60.0 %, but that may be chance."),  # b and c unpaired
        ((0.5, 0.5), 0.2, None, "a and b are equal on x: 50.0 %."),
    ],
)
def test_the_best_run_is_named_and_chance_is_not_hidden(accuracies, margin, paired, words):
    runs = [
        RunData(path=Path(name), name=name, results=[result(accuracy, margin)])
        for name, accuracy in zip("abc", accuracies, strict=False)
    ]
    documents = [against_first(a - accuracies[0], m) for a, m in zip(accuracies[1:], paired or [], strict=False)]
    assert verdict(runs, documents) == words


@pytest.mark.parametrize(("kept", "words"), [(0.2, "; it retained less than another run on y."), (0.5, ".")])
def test_what_the_best_run_lost_against_another_is_said(kept, words):
    def retained(accuracy):
        return TaskResult("student", "y", "retained", 200, accuracy, accuracy - 0.05, accuracy + 0.05, 0, 0, 5.0)

    runs = [
        RunData(path=Path("a"), name="a", results=[result(0.5, 0.02), retained(0.5)]),
        RunData(path=Path("b"), name="b", results=[result(0.6, 0.02), retained(kept)]),
    ]
    assert verdict(runs) == f"b did best on x: 60.0 %{words}"


def test_equal_shares_trust_nobody_most():
    equal = [
        {"id": "p", "teachers": ["a", "b"], "difficulty": [1.0, 1.0], "weights": [0.5, 0.5]},
    ]
    run = RunData(path=Path("r"), name="r", trace=arrange_trace(equal))
    assert overview([run]).rows[0][-2] == "all equally"


def test_runs_with_nothing_in_common_can_be_compared(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("student: [not, closed\n" if name == "x" else "student: s\n")
    page = write_report([tmp_path / "x", tmp_path / "y"], tmp_path / "c.html").read_text()
    assert "without a learned benchmark in common" in page
