"""What a study reads from its runs' weights: values worked out by hand, on run folders of two problems."""

from __future__ import annotations

import json

import pytest

from compact_distill.runs.folder import RunFolder
from compact_distill.study.weights import weight_section, weights_of

VERDICTS = ("correct", "wrong", "wrong")


def run_folder(folder, weights, penalties=((0.0, 5.0, 10.0), (0.0, 5.0, 10.0))):
    """A run that read two problems once an epoch; `weights[epoch][problem]` are those of teachers a, b and c."""
    with RunFolder.claim(folder):
        pass
    rows, trace = [], []
    for p, numbers in enumerate(penalties):
        rationales = [
            {"teacher": t, "sample": 0, "verdict": v, "tokens": 10 * (k + 1), "numbers": {"mqm": n}}
            for k, (t, v, n) in enumerate(zip("abc", VERDICTS, numbers, strict=True))
        ]
        rows.append({"id": f"p{p}", "question": "q", "answer": "1", "rationales": rationales})
    for epoch, of_problems in enumerate(weights):
        for p, own in enumerate(of_problems):
            scores = {name: [0.1, 0.2, 0.3] for name in ("consensus", "adaptability", "difficulty")}
            trace.append({"epoch": epoch, "step": epoch, "id": f"p{p}", "teachers": ["a", "b", "c"],
                          "weights": own, **scores})  # fmt: skip
    for name, lines in (("data.jsonl", rows), ("scores.jsonl", trace)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


DOWN, UP, FIRST = [0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.5, 0.0, 0.5]


def test_tokens_areas_and_correlations_are_those_of_the_readings(tmp_path):
    found = weights_of([[run_folder(tmp_path / "r", [[DOWN, UP]])]])
    assert found["tokens"] == [120]  # (10 + 20 + 30) twice
    assert found["tokens_with_weight"] == [120]
    # The right one weighs more than both wrong ones in p0, less than both in p1.
    assert found["auc"]["value"] == 0.5
    assert found["auc"]["problems"] == 2
    # The penalty rises with k: rank correlation -1 in p0, +1 in p1.
    assert found["follows"]["mqm"]["value"] == pytest.approx(0.0, abs=1e-12)
    down = weights_of([[run_folder(tmp_path / "down", [[DOWN, DOWN]])]])
    assert down["follows"]["mqm"]["value"] == pytest.approx(-1.0)
    assert down["auc"]["value"] == 1.0


def test_tokens_without_weight_are_read_but_not_weighed(tmp_path):
    found = weights_of([[run_folder(tmp_path / "r", [[FIRST, DOWN]])]])
    assert (found["tokens"], found["tokens_with_weight"]) == ([120], [100])


def test_equal_weights_follow_no_number_and_no_curriculum(tmp_path):
    found = weights_of([[run_folder(tmp_path / "r", [[[1 / 3] * 3] * 2] * 3)]])
    assert found["follows"] == {}
    assert found["curriculum"] == {}
    assert found["auc"]["value"] == 0.5


def test_a_curriculum_is_the_change_of_the_weights_correlation_over_training(tmp_path):
    runs = [
        [run_folder(tmp_path / f"{s}", [[DOWN, DOWN], [DOWN, DOWN], last])]
        for s, last in enumerate(([UP] * 2, [DOWN] * 2))
    ]
    found = weights_of(runs)["curriculum"]
    # Difficulty and length both rise with k: from -1 to +1 in the first seed, no change in the second.
    for name in ("difficulty", "length"):
        assert [trend["value"] for trend in found[name]] == pytest.approx([2.0, 0.0])


def test_a_merged_students_parts_count_together_and_have_no_curriculum(tmp_path):
    parts = [run_folder(tmp_path / "a", [[DOWN, DOWN]] * 3), run_folder(tmp_path / "b", [[UP, UP]] * 3)]
    found = weights_of([parts])
    assert found["tokens"] == [6 * 120]
    assert found["curriculum"] == {}
    assert found["auc"]["value"] == 0.5


def test_the_section_names_what_the_data_brings(tmp_path):
    arm = {**weights_of([[run_folder(tmp_path / "r", [[DOWN, UP]] * 3)]]), "drift": {}}
    figures = {figure.key: figure for figure in weight_section({"compact": arm}).figures}
    assert set(figures) == {"auc", "follows_mqm", "curriculum"}
    assert figures["follows_mqm"].table.rows[0][0] == "compact"
