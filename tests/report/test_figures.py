"""The figures' numbers: by hand, computed again from the files, and against other libraries."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from compact_distill.report import figures_weights as scores
from compact_distill.report import read_run, summary
from compact_distill.report.figures_weights import weight_moves
from compact_distill.report.pages import run_sections
from report.synthetic import make_run

DOCS = Path(__file__).resolve().parents[2] / "docs" / "report.md"
KEYS = [
    "accuracy",
    "change",
    "accuracy_over_training",
    "weights",
    "entropy",
    "curriculum",
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


SCORES = ("consensus", "adaptability", "difficulty")


def figures(run):
    return [figure for section in run_sections(read_run(run)) for figure in section.figures]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", problems=30, checkpoints=True)


@pytest.fixture(scope="module")
def found(folder):
    return {figure.key: figure for figure in figures(folder)}


def test_a_whole_run_has_every_figure_once(found):
    assert list(found) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_every_figure_says_what_to_look_for_and_is_documented(found, key):
    figure = found[key]
    assert len(figure.caption) > 80
    assert figure.charts
    assert figure.table.rows
    assert f"| `{key}` | {figure.title} | {', '.join(figure.table.columns)} |" in DOCS.read_text()


# ---- the same numbers from the files, the slow and obvious way


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def readings(folder, last=False):
    """(epoch, id, teacher, weight, scores) of each rationale that took part; `last`: of each problem's last reading."""
    rows = lines(folder / "scores.jsonl")
    rows = list({row["id"]: row for row in rows}.values()) if last else rows
    return [
        (row["epoch"], row["id"], teacher, row["weights"][k], {name: row[name][k] for name in SCORES})
        for row in rows
        for k, teacher in enumerate(row["teachers"])
        if row["statuses"][k] == "ok"
    ]


def rationales(folder):
    """(id, rationale) of each entry of data.jsonl."""
    return [(row["id"], r) for row in lines(folder / "data.jsonl") for r in row["rationales"]]


def grouped(pairs):
    groups = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def mean_and_error(values):
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def bin_end(epoch, width=1.0):
    return (math.floor(epoch / width + 1e-9) + 1) * width


def weights_of(folder, width=1.0):
    best = {(row["id"], row["epoch"]): max(row["weights"]) for row in lines(folder / "scores.jsonl")}
    found = grouped(((bin_end(e, width), t), (w, float(w == best[i, e]))) for e, i, t, w, _ in readings(folder))
    return {
        (*key, *mean_and_error([w for w, _ in values]), statistics.mean(win for _, win in values), len(values))
        for key, values in found.items()
    }


def entropies_of(folder, width=1.0):
    found = grouped(
        (bin_end(row["epoch"], width), -sum(w * math.log(w) for w in row["weights"] if w))
        for row in lines(folder / "scores.jsonl")
    )
    return {(epoch, *mean_and_error(values), len(values)) for epoch, values in found.items()}


def scores_over_training_of(folder, width=1.0):
    found = grouped(((bin_end(e, width), t, name), s[name]) for e, _, t, _, s in readings(folder) for name in SCORES)
    return {(*key, *mean_and_error(values), len(values)) for key, values in found.items()}


def curriculum_of(folder):
    """Correlation of the centred ranks within problems, by epoch; no two values of this run are equal."""
    rows, length = lines(folder / "scores.jsonl"), {(i, r["teacher"]): r["tokens"] for i, r in rationales(folder)}
    first = {row["id"]: row for row in reversed(rows)}
    out = set()
    for epoch, group in grouped((bin_end(row["epoch"]), row) for row in rows).items():
        for name in ("difficulty", "length"):
            a, b = [], []
            for row in group:
                here = [k for k, s in enumerate(row["statuses"]) if s == "ok"]
                if name == "length":
                    other = [length[row["id"], row["teachers"][k]] for k in here]
                else:
                    other = [first[row["id"]]["difficulty"][k] for k in here]
                for column, values in ((a, [row["weights"][k] for k in here]), (b, other)):
                    ranks = stats.rankdata(values)
                    column.extend(ranks - ranks.mean())
            out.add((epoch, name, float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))))
    return out


def verdicts(folder):
    return {(i, r["teacher"]): r["verdict"] for i, r in rationales(folder) if r["verdict"] in ("correct", "wrong")}


def score_distributions_of(folder):
    verdict, found = verdicts(folder), {}
    for _, i, t, _, s in readings(folder, last=True):
        for name in SCORES:
            if (i, t) in verdict:
                found.setdefault((name, t, verdict[i, t]), []).append(s[name])
    return {(*key, len(values), statistics.median(values)) for key, values in found.items()}


def separation_of(folder):
    verdict, out = verdicts(folder), set()
    by_reading = {"last": list({r["id"]: r for r in lines(folder / "scores.jsonl")}.values())}
    by_reading["first"] = list({r["id"]: r for r in reversed(lines(folder / "scores.jsonl"))}.values())
    for reading, rows in by_reading.items():
        for name in ("weight", *SCORES):
            wins = []
            for row in rows:
                values = row["weights" if name == "weight" else name]
                of = {t: v for t, v, s in zip(row["teachers"], values, row["statuses"], strict=True) if s == "ok"}
                for a, b in itertools.permutations(of, 2):
                    if (verdict.get((row["id"], a)), verdict.get((row["id"], b))) == ("correct", "wrong"):
                        sign = -1 if name == "difficulty" else 1
                        wins.append((sign * of[a] > sign * of[b]) + 0.5 * (of[a] == of[b]))
            out.add((name, reading, statistics.mean(wins), len(wins)))
    return out


def weight_by_verdict_of(folder):
    verdict = verdicts(folder)
    found = grouped(((t, verdict[i, t]), w) for _, i, t, w, _ in readings(folder, last=True) if (i, t) in verdict)
    return {(*key, *mean_and_error(values), len(values)) for key, values in found.items()}


def correlations_of(folder):
    rows = readings(folder, last=True)
    columns = {name: [s[name] for *_, s in rows] for name in SCORES} | {"weight": [w for *_, w, _ in rows]}
    return {(a, b, stats.spearmanr(columns[a], columns[b]).statistic) for a in columns for b in columns}


def accuracies(folder):
    return [(p.parent.name, json.loads(p.read_text())) for p in sorted((folder / "eval").glob("*/*.json"))]


def parts_of(folder):
    def part(r):
        return (
            {"correct": "right", "wrong": "wrong"}[r["verdict"]]
            if r["status"] == "ok"
            else r["status"].replace("_", " ")
        )

    return {
        (*key, len(values))
        for key, values in grouped(((r["teacher"], part(r)), 1) for _, r in rationales(folder)).items()
    }


def lengths_of(folder):
    found = grouped((r["teacher"], r["tokens"]) for _, r in rationales(folder) if r["tokens"])
    return {(t, len(values), statistics.median(values)) for t, values in found.items()}


def agreement_of(folder):
    out = set()
    for a, b in itertools.permutations(("qwq", "llama-70b", "qwen-72b", "r1-distill"), 2):
        same = []
        for row in lines(folder / "data.jsonl"):
            x, y = (next(r for r in row["rationales"] if r["teacher"] == t) for t in (a, b))
            if x["answer"] is not None and y["answer"] is not None:
                same.append(x["answer"] == y["answer"] or x["verdict"] == y["verdict"] == "correct")
        out.add((a, b, statistics.mean(same), len(same)))
    return out


def right_per_problem_of(folder):
    counts = Counter(sum(r["verdict"] == "correct" for r in row["rationales"]) for row in lines(folder / "data.jsonl"))
    return {(n, counts[n]) for n in range(5)}


def drift_of(folder):
    return json.loads((folder / "eval" / "drift.json").read_text())["sets"]


def planes_of(folder):
    return {
        (s["role"], layer, who, name, x, y)
        for s in drift_of(folder)
        for layer in (1, 3, 6)  # three of the six, evenly spaced: round(2.5) is 2, the third
        for who in ("base", "student")
        for name, (x, y) in zip(s["plane"]["ids"], s["plane"][who][layer - 1], strict=True)
    }


SHIFTS = ("layer", "centroid_shift", "row_shift", "centroid_distance", "row_distance", "cka")
CURVES = ("epoch", "loss", "loss_likelihood", "loss_consistency", "grad_norm", "problems_per_second", "memory_mib")
# By figure: the columns that are compared, and the rows they must hold.
REFERENCES = {
    "accuracy": (
        ("student", "task", "value", "low", "high"),
        lambda run: {
            (who, r["task"]["name"], *(r["result"][k] for k in ("accuracy", "low", "high")))
            for who, r in accuracies(run)
        },
    ),
    "change": (
        ("task", "difference", "low", "high"),
        lambda run: {
            tuple(c[k] for k in ("task", "difference", "low", "high"))
            for c in json.loads((run / "eval" / "changes.json").read_text())["changes"]
        },
    ),
    "accuracy_over_training": (
        ("epoch", "task", "accuracy"),
        lambda run: {(r["student"]["epoch"], r["task"]["name"], r["result"]["accuracy"]) for _, r in accuracies(run)},
    ),
    "weights": (("epoch", "teacher", "weight", "sem", "wins", "n"), weights_of),
    "entropy": (("epoch", "entropy", "sem", "n"), entropies_of),
    "curriculum": (("epoch", "property", "correlation"), curriculum_of),
    "scores_over_training": (("epoch", "teacher", "score", "mean", "sem", "n"), scores_over_training_of),
    "score_distributions": (("score", "teacher", "verdict", "count", "median"), score_distributions_of),
    "separation": (("score", "reading", "chance", "pairs"), separation_of),
    "weight_by_verdict": (("teacher", "verdict", "weight", "sem", "n"), weight_by_verdict_of),
    "correlations": (("a", "b", "correlation"), correlations_of),
    "drift_planes": (("role", "layer", "student", "id", "x", "y"), planes_of),
    "drift_layers": (
        ("role", *SHIFTS),
        lambda run: {(s["role"], *(n[k] for k in SHIFTS)) for s in drift_of(run) for n in s["layers"]},
    ),
    "divergence": (
        ("role", "where", "mean", "low", "high"),
        lambda run: {
            (s["role"], k, *(s[k][m] for m in ("mean", "low", "high")))
            for s in drift_of(run)
            for k in ("kl_last", "kl_prompt")
        },
    ),
    "training": (
        CURVES,
        lambda run: {tuple(row[k] for k in CURVES) for row in lines(run / "training_log.jsonl") if "loss" in row},
    ),
    "data_status": (("teacher", "part", "count"), parts_of),
    "data_lengths": (("teacher", "count", "median"), lengths_of),
    "agreement": (("a", "b", "share", "n"), agreement_of),
    "right_per_problem": (("right", "problems"), right_per_problem_of),
}


def rounded(rows):
    def plain(value):  # NaN differs from itself
        return f"{value:.9g}" if isinstance(value, int | float) else value

    return {tuple(plain(value) for value in row) for row in rows}


def shown(figure, columns):
    """A figure's rows, reduced to some columns; counts of a histogram's bins are summed."""
    at = [figure.table.columns.index(c) for c in columns]
    rows = [tuple(row[i] for i in at) for row in figure.table.rows]
    if "from" not in figure.table.columns:
        return rows
    place = columns.index("count")
    sums = Counter()
    for row in rows:
        sums[row[:place] + row[place + 1 :]] += row[place]
    return [(*row[:place], count, *row[place:]) for row, count in sums.items()]


@pytest.mark.parametrize("key", KEYS)
def test_a_figures_numbers_are_those_of_the_files(found, folder, key):
    columns, reference = REFERENCES[key]
    expected = rounded(reference(folder))
    assert rounded(shown(found[key], columns)) == expected
    assert len(expected) >= 4


@pytest.mark.parametrize(
    ("key", "reference"),
    [("weights", weights_of), ("entropy", entropies_of), ("scores_over_training", scores_over_training_of)],
)
def test_brief_runs_are_cut_in_eighths(tmp_path, key, reference):
    run = make_run(tmp_path / "brief", problems=30, epochs=1)
    figure = {f.key: f for f in figures(run)}[key]
    assert len({row[0] for row in figure.table.rows}) == 8
    assert rounded(figure.table.rows) == rounded(reference(run, 1 / 8))


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


def test_a_score_of_which_less_is_better_knows_right_from_wrong_where_right_ones_have_less(tmp_path):
    row = {"id": "p", "rationales": [{"teacher": "a", "verdict": "correct"}, {"teacher": "b", "verdict": "wrong"}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    extra = {name: [1.0, 2.0] for name in ("rank_surprisal", "mine", "other")}
    row = {"id": "p", "teachers": ["a", "b"], "difficulty": [1.0, 2.0], "weights": [0.5, 0.5], "extra_scores": extra}
    (tmp_path / "scores.jsonl").write_text(json.dumps(row) + "\n")
    run = replace(read_run(tmp_path), manifest={"less_is_better": ["difficulty", "mine"]})
    figure = next(f for section in run_sections(run) for f in section.figures if f.key == "separation")
    chances = {name: chance for name, reading, chance, _ in figure.table.rows if reading == "last"}
    assert chances == {"weight": 0.5, "difficulty": 1.0, "rank_surprisal": 1.0, "mine": 1.0, "other": 0.0}
    shown = [e.text for e in figure.charts[0](720).root.iter("text") if e.get("class") == "row"]
    turned = ["difficulty, lower is better", "mine, lower is better", "rank_surprisal, lower is better"]
    assert sorted(shown) == [*turned[:2], "other", turned[2], "weight"]


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
    figure = next(f for f in figures(tmp_path) if f.key == "agreement")
    assert figure.table.rows == [("a", "b", pytest.approx(2 / 3), 3), ("b", "a", pytest.approx(2 / 3), 3)]


def test_a_rationale_without_weight_did_not_train(tmp_path):
    """A right one and a wrong one under `verified`, a problem that was skipped, a right one that is too long."""
    verdicts = [("correct", "wrong", "ok"), ("wrong", "unparsed", "ok"), (None, "correct", "over_length")]
    rows = [
        {
            "id": str(i),
            "rationales": [{"teacher": "a", "verdict": a}, {"teacher": "b", "verdict": b, "status": status}],
        }
        for i, (a, b, status) in enumerate(verdicts)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def drawn(*weights):
        rows = [
            {"id": str(i), "teachers": ["a", "b"], "difficulty": [1.0, 1.0 if i < 2 else None], "weights": own}
            for i, own in weights
        ]
        (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        figure = next(f for f in figures(tmp_path) if f.key == "data_status")
        return set(figure.table.rows), figure.finding, "not checked trained it too" in figure.caption

    table, finding, unchecked = drawn((0, [1.0, 0.0]))
    assert table == {
        ("a", "right", 1),
        ("a", "no weight", 2),
        ("b", "no weight", 2),
        ("b", "over length", 1),
    }
    assert finding.startswith(
        "1 of 6 rationales took part in training. 4 had no weight in any reading: the weight rule"
    )
    assert not unchecked
    # All that are present have weight: one whose answer could not be compared trains as well.
    table, finding, unchecked = drawn((0, [0.5, 0.5]), (1, [0.5, 0.5]), (2, [1.0, 0.0]))
    assert table == {
        ("a", "right", 1),
        ("a", "wrong", 1),
        ("a", "not checked", 1),
        ("b", "wrong", 1),
        ("b", "not checked", 1),
        ("b", "over length", 1),
    }
    assert finding == "5 of 6 rationales took part in training."
    assert unchecked


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


@pytest.mark.parametrize(("wins", "count"), [(0, 6), (1, 6), (6, 6), (13, 40)])
def test_the_band_of_a_share_of_wins_is_wilsons_interval(wins, count):
    interval = stats.binomtest(wins, count).proportion_ci(0.95, method="wilson")
    assert scores._of_share(wins / count, 0.0, count) == pytest.approx(tuple(interval), abs=1e-5)


def test_bands_of_weights_and_wins_stay_between_0_and_1(tmp_path):
    trace = read_run(make_run(tmp_path / "run", problems=3)).trace
    weights, _ = scores._curves(trace, trace.weights_NK, scores._of_weight)
    wins, _ = scores._curves(trace, trace.wins_NK, scores._of_share)
    assert all(0 <= value <= 1 for line in (*weights, *wins) for value in (*line.low, *line.high))
    assert all(low < high for line in wins for low, high in zip(line.low, line.high, strict=True))


def test_a_curriculum_is_told_only_where_weights_moved_beyond_chance(folder, tmp_path):
    assert weight_moves(read_run(folder).trace).startswith(
        "The weights moved: between first and last reading qwq gained"
    )
    path = make_run(tmp_path / "still", problems=12) / "scores.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by_id = {}
    for row in rows:
        row["weights"] = by_id.setdefault(row["id"], row["weights"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert weight_moves(read_run(path.parent).trace).startswith("The weights stayed")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["epoch"] < 1))
    assert weight_moves(read_run(path.parent).trace).startswith("Every problem was read once")


def test_long_logs_are_averaged_and_say_so(tmp_path):
    run = make_run(tmp_path / "long", problems=404, teachers=["a"], epochs=5, tokens=3, students=())
    figure = next(f for f in figures(run) if f.key == "training")
    losses = [json.loads(line).get("loss") for line in (run / "training_log.jsonl").read_text().splitlines()][:-1]
    assert len(losses) == 505
    assert len(figure.table.rows) == 169
    assert figure.table.rows[0][1] == pytest.approx(sum(losses[:3]) / 3)
    assert "mean of 3 log lines" in figure.caption


@pytest.fixture(scope="module")
def likely(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "likely", problems=8, likelihood=True)


def test_every_measure_of_a_task_is_shown_in_its_own_unit(likely):
    by_key = {figure.key: figure for figure in figures(likely)}
    for key in ("accuracy", "change"):
        titles = [chart(360).title for chart in by_key[key].charts]
        assert [title.endswith("(less is better)") for title in titles] == [False, True, True]
        assert "ats a token" in titles[1]
        assert "its a byte" in titles[2]
    rows = [row[1:5] for row in by_key["accuracy"].table.rows if row[0] == "student" and row[1] == "csqa_likelihood"]
    assert [(metric, value) for _, _, metric, value in rows] == [
        ("acc", 0.31),
        ("acc_norm", 0.35),
        ("nats_per_token", 2.2),
    ]
    labels = [e.text for e in by_key["accuracy"].charts[0](360).root.iter("text") if e.get("class") == "row"]
    assert "csqa_likelihood, acc (retained)" in labels
    assert "gsm8k (learned)" in labels  # its only measure


def test_a_rise_of_bits_is_a_loss_and_a_fall_of_nats_a_gain(likely):
    sheet = {f.key: f for f in figures(likely)}["change"].charts[1](360)
    colours = [e.get("class").split()[-1] for e in sheet.root.iter("line") if "whisker" in e.get("class")]
    assert colours == ["after", "wrong"]  # csqa_likelihood fell by 0.3 nats a token, texts rose by 0.8
    text = summary(read_run(likely))
    assert "it lost on texts (+0.3 bits a byte)" in text
    assert "1.1 bits a byte → 1.4 bits a byte" in text
    assert "csqa_likelihood   36.0 % →  35.0 %" in text
