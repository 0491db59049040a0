"""The figures' numbers: by hand, by the documented shell lines, and against other libraries."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from compact_distill.report import read_run
from compact_distill.report.figures import scores
from compact_distill.report.figures.weights import curriculum
from compact_distill.report.run_page import figures
from report.synthetic import make_run

DOCS = Path(__file__).resolve().parents[2] / "docs" / "report.md"
KEYS = [
    "accuracy",
    "change",
    "accuracy_over_training",
    "weights",
    "entropy",
    "scores_over_training",
    "score_distributions",
    "separation",
    "weight_by_verdict",
    "correlations",
    "drift_planes",
    "drift_layers",
    "divergence",
    "training",
    "data_status",
    "data_lengths",
    "agreement",
    "right_per_problem",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", problems=30, checkpoints=True)


@pytest.fixture(scope="module")
def found(folder):
    return {figure.key: figure for figure in figures(read_run(folder))}


def test_a_whole_run_has_every_figure_once(found):
    assert list(found) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_every_figure_says_what_to_look_for_and_is_documented(found, key):
    figure = found[key]
    assert len(figure.caption) > 80
    assert figure.sheets
    assert figure.table.rows
    assert figure.recompute in DOCS.read_text()


def run_line(line, folder, monkeypatch):
    """The output of a shell line `python -c "..."`, run here so that pandas is imported once."""
    assert not set("`$!\\") & set(line)  # nothing that a shell would expand
    program, flag, code = shlex.split(line)
    assert (program, flag) == ("python", "-c")
    monkeypatch.chdir(folder)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        exec(code, {})
    return text.getvalue()


def rows_of(text, columns):
    """Rows of a CSV, reduced to some columns, with numbers rounded so that they can be compared."""

    def plain(value):
        try:
            return float(f"{float(value):.5g}")
        except ValueError:
            return value

    return Counter(tuple(plain(row[c]) for c in columns) for row in csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("key", KEYS)
def test_the_documented_line_prints_the_figures_numbers(found, folder, key, monkeypatch):
    ours, theirs = found[key].table.csv(), run_line(found[key].recompute, folder, monkeypatch)
    header = next(csv.reader(io.StringIO(theirs)))
    columns = [c for c in header if c in found[key].table.columns]
    assert len(columns) >= 2
    a, b = rows_of(ours, columns), rows_of(theirs, columns)
    if key == "drift_planes":  # the page shows some layers, the line prints all
        assert a <= b
    elif key == "right_per_problem":  # the page also shows counts of 0
        assert Counter({row: n for row, n in a.items() if row[1] != 0}) == b
    elif key in ("accuracy_over_training",):
        assert a == b
    else:
        assert a == b
    assert a


def test_a_documented_line_runs_in_a_shell(found, folder):
    line = found["weight_by_verdict"].recompute.replace("python", shlex.quote(sys.executable), 1)
    done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("teacher,verdict,weight,sem,n\n")


def test_brief_runs_are_cut_in_eighths_by_the_line_too(tmp_path, monkeypatch):
    run = make_run(tmp_path / "brief", problems=30, epochs=1)
    by_key = {figure.key: figure for figure in figures(read_run(run))}
    for key in ("weights", "entropy", "scores_over_training"):
        text = run_line(by_key[key].recompute, run, monkeypatch)
        columns = [c for c in next(csv.reader(io.StringIO(text))) if c in by_key[key].table.columns]
        assert rows_of(by_key[key].table.csv(), columns) == rows_of(text, columns)
        assert len({row[0] for row in by_key[key].table.rows}) == 8


def test_the_chance_that_right_beats_wrong_by_hand():
    values = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, np.nan]])
    right = np.array([[True, False, False], [True, False, False]])
    wrong = np.array([[False, True, True], [False, True, True]])
    # First problem: 3 beats 1 and 2. Second: a tie counts half, the missing one not at all.
    assert scores.pair_order(values, right, wrong) == (pytest.approx(2.5 / 3), 3)


def test_no_pair_gives_no_chance():
    chance, pairs = scores.pair_order(np.ones((1, 2)), np.ones((1, 2), bool), np.zeros((1, 2), bool))
    assert math.isnan(chance)
    assert pairs == 0


def test_rank_correlation_is_scipys_ties_and_gaps_included():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 80).astype(float)
    b = a + rng.normal(0, 3, 80)
    a[5] = b[9] = np.nan
    both = ~(np.isnan(a) | np.isnan(b))
    assert scores.spearman(a, b) == pytest.approx(stats.spearmanr(a[both], b[both]).statistic, abs=1e-12)
    assert math.isnan(scores.spearman(np.ones(5), np.arange(5.0)))


def test_teachers_agree_where_both_are_right_or_write_the_same(tmp_path):
    answers = [("18", "$18.00", "correct", "correct"), ("7", " 7", "wrong", "wrong"), ("5", "6", "correct", "wrong")]
    answers.append((None, "3", "unparsed", "correct"))  # says nothing, so it does not count
    rows = [
        {
            "id": str(i),
            "rationales": [
                {"teacher": "a", "answer": a, "verdict": x, "tokens": 3},
                {"teacher": "b", "answer": b, "verdict": y, "tokens": 3},
            ],
        }
        for i, (a, b, x, y) in enumerate(answers)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = next(f for f in figures(read_run(tmp_path)) if f.key == "agreement")
    assert figure.table.rows == [("a", "b", pytest.approx(2 / 3), 3), ("b", "a", pytest.approx(2 / 3), 3)]


def test_weights_and_entropy_are_those_of_the_file(folder, found):
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    first = [row for row in rows if row["epoch"] < 1]
    own = [row["weights"][0] for row in first if row["statuses"][0] == "ok"]
    epoch, teacher, weight, _, wins, n = found["weights"].table.rows[0]
    assert (epoch, teacher, n) == (1.0, "qwq", len(own))
    assert weight == pytest.approx(sum(own) / len(own))
    assert wins == pytest.approx(
        sum(row["weights"][0] == max(row["weights"]) for row in first if row["statuses"][0] == "ok") / len(own)
    )
    entropies = [-sum(w * math.log(w) for w in row["weights"] if w) for row in first]
    assert found["entropy"].table.rows[0][1] == pytest.approx(sum(entropies) / len(entropies))


def test_a_curriculum_is_told_only_where_weights_moved_beyond_chance(folder, tmp_path):
    assert curriculum(read_run(folder).trace).startswith("The weights moved: between first and last reading qwq gained")
    path = make_run(tmp_path / "still", problems=12) / "scores.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by_id = {}
    for row in rows:
        row["weights"] = by_id.setdefault(row["id"], row["weights"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert curriculum(read_run(path.parent).trace).startswith("The weights stayed")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["epoch"] < 1))
    assert curriculum(read_run(path.parent).trace).startswith("Every problem was read once")


def test_long_logs_are_averaged_and_say_so(tmp_path):
    run = make_run(tmp_path / "long", problems=404, teachers=["a"], epochs=5, tokens=3, students=())
    figure = next(f for f in figures(read_run(run)) if f.key == "training")
    losses = [json.loads(line).get("loss") for line in (run / "training_log.jsonl").read_text().splitlines()][:-1]
    assert len(losses) == 505
    assert len(figure.table.rows) == 169
    assert figure.table.rows[0][1] == pytest.approx(sum(losses[:3]) / 3)
    assert "mean of 3 log lines" in figure.caption
