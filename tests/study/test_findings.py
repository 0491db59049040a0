"""What a study says of its runs: means, paired differences and corrected p, on answers written by hand."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from compact_distill.errors import RunError
from compact_distill.evaluation.result_files import write_result
from compact_distill.runs.files import content_hash
from compact_distill.study.arms import StudyConfig, make_study
from compact_distill.study.findings import Outcome, collect, describe, write_results
from report.synthetic import make_run

BASE = {"student": "s", "rationales": "r.jsonl"}
ARMS = {"equal": {"weighting": "equal"}, "compact": {}, "verified": {"weighting": "verified"}}
# By arm and seed: which of eight rows of the one benchmark were answered right.
RIGHT = {
    "equal": {0: "xx......", 1: "........"},
    "compact": {0: "xxxxxxxx"},
    "verified": {0: "xxx....."},
}


def answer(folder, marks, ids="abcdefgh", task="t"):
    """Results of a student that got right what is marked."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": i, "verdict": "correct" if mark == "x" else "wrong"} for i, mark in zip(ids, marks, strict=True)]
    (folder / f"{task}.rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"samples": 1, "metric": "accuracy"}
    kind = {"kind": "generate", "name": task}
    found = {"format": 1, "role": "learned", "task": kind, "result": result}
    write_result(folder / f"{task}.json", {**found, "rows_hash": content_hash(folder / f"{task}.rows.jsonl")})


@pytest.fixture
def outcome(tmp_path):
    study = make_study(StudyConfig(base=BASE, arms=ARMS, seeds=(0, 1)))
    runs = {}
    for arm, by_seed in RIGHT.items():
        for seed, marks in by_seed.items():
            run = make_run(tmp_path / arm / f"seed-{seed}", problems=3, epochs=1, students=())
            shutil.rmtree(run / "eval")
            answer(run / "eval" / "student", marks)
            runs.setdefault(arm, {})[seed] = run
    runs["verified"][1] = tmp_path / "not" / "there"
    answer(tmp_path / "base", "x.......")
    return Outcome(tmp_path, study, runs, {}, {"verified/seed-1": "it broke"}, {})


def test_means_are_over_seeds_and_rows_and_differences_over_the_seeds_that_both_arms_have(outcome):
    document, _ = collect(outcome)
    assert document["base"]["learned"]["value"] == 1 / 8
    assert {name: arm["learned"]["value"] for name, arm in document["arms"].items()} == {
        "equal": 1 / 8, "compact": 1.0, "verified": 3 / 8,
    }  # fmt: skip
    assert document["arms"]["equal"]["tasks"]["t"]["by_seed"] == [2 / 8, 0.0]
    assert list(document["arms"]["verified"]["runs"]) == ["0"], "the run that failed does not count"
    differences = document["differences"]["equal"]
    assert {name: found["learned"]["value"] for name, found in differences.items()} == {
        "compact": 6 / 8, "verified": 1 / 8,
    }  # fmt: skip
    assert differences["compact"]["learned"]["seeds"] == 1
    compact = document["differences"]["compact"]
    assert {name: found["learned"]["value"] for name, found in compact.items()} == {
        "equal": -6 / 8, "verified": -5 / 8,
    }  # fmt: skip


def test_p_is_exact_and_corrected_for_the_number_of_arms(outcome):
    document, _ = collect(outcome)
    # Six rows gained and none lost: 2 / 2^6; one gained: 1. Holm: the smaller one twice. Against compact 2 / 2^6 and
    # 2 / 2^5: the smaller one twice, the larger one once, and not below the other.
    found = {
        reference: {name: (own["learned"]["p"], own["learned"]["p_holm"]) for name, own in differences.items()}
        for reference, differences in document["differences"].items()
    }
    assert found == {
        "equal": {"compact": (1 / 32, 1 / 16), "verified": (1.0, 1.0)},
        "compact": {"equal": (1 / 32, 1 / 16), "verified": (1 / 16, 1 / 16)},
    }


def test_intervals_hold_the_mean_and_eight_rows_of_eight_are_no_certainty(outcome):
    arms = collect(outcome)[0]["arms"]
    # Wilson's of eight of eight: 1 - z^2 / (8 + z^2), since a bootstrap would always draw right rows.
    for found in (arms["compact"]["learned"], arms["compact"]["tasks"]["t"]):
        assert (found["low"], found["high"]) == (pytest.approx(1 - 1.959964**2 / (8 + 1.959964**2)), 1.0)
    assert 0.0 <= arms["verified"]["learned"]["low"] < 3 / 8 < arms["verified"]["learned"]["high"] < 1.0


def test_arms_that_answer_every_row_alike_may_still_differ_on_others(outcome):
    for seed, marks in RIGHT["equal"].items():
        outcome.runs["compact"][seed] = shutil.copytree(outcome.runs["equal"][seed], outcome.out / f"twin-{seed}")
        answer(outcome.runs["compact"][seed] / "eval" / "student", marks)
    document, costs = collect(outcome)
    own = document["differences"]["equal"]["compact"]["learned"]
    assert (own["value"], own["p"], own["seeds"]) == (0.0, 1.0, 2)
    # Two seeds share their eight rows, which are all that is known of others: z^2 / (8 + z^2), Tango's and Wilson's.
    limit = 1.959964**2 / (8 + 1.959964**2)
    assert (own["low"], own["high"]) == (pytest.approx(-limit), pytest.approx(limit))
    assert "+0.0 (-32.4 to +32.4), 1" in "\n".join(describe(document, costs))


def test_a_drift_that_not_every_run_has_stands_for_no_arm(outcome):
    def write(seed, shift):
        layers = [{"centroid_shift": shift, "cka": 0.9}]
        sets = [{"role": "retained", "kl_last": {"mean": 0.5 + seed}, "layers": layers}]
        write_result(outcome.runs["equal"][seed] / "eval" / "drift.json", {"format": 1, "sets": sets})

    write(0, 0.1)
    assert collect(outcome)[0]["arms"]["equal"]["drift"] == {}
    write(1, None)  # where the base's states do not spread
    assert collect(outcome)[0]["arms"]["equal"]["drift"] == {
        "retained": {"kl": 1.0, "cka": 0.9, "by_seed": {"kl": [0.5, 1.5], "cka": [0.9, 0.9]}}
    }


def test_rows_are_shares_over_seeds(outcome):
    rows = collect(outcome)[0]["rows"]["t"]
    assert rows["ids"] == list("abcdefgh")
    assert rows["arms"]["equal"] == [0.5, 0.5, 0, 0, 0, 0, 0, 0]


def test_the_table_is_a_line_an_arm_and_benchmark(outcome):
    document, costs = write_results(outcome)
    with (outcome.out / "study.csv").open() as file:
        lines = {(row["arm"], row["benchmark"]): row for row in csv.DictReader(file)}
    assert set(lines) == {(arm, task) for arm in ("base", *ARMS) for task in ("all", "t")}
    whole = lines["compact", "all"]
    assert (whole["seeds"], whole["role"], float(whole["mean"])) == ("1", "learned", 1.0)
    assert float(whole["minus_equal_mean"]) == 0.75
    assert (float(whole["minus_equal_p"]), float(whole["minus_equal_p_holm"])) == (1 / 32, 1 / 16)
    assert whole["minus_compact_mean"] == ""
    assert lines["compact", "t"]["rows"] == "8"
    text = "\n".join(describe(document, costs))
    assert "+75.0" in text
    assert "failed: verified/seed-1: it broke" in text
    assert json.loads((outcome.out / "study.json").read_text()) == document
    assert json.loads((outcome.out / "costs.json").read_text()) == costs


def test_a_run_without_data_is_in_the_table_without_its_tokens(outcome):
    (outcome.runs["equal"][1] / "data.jsonl").unlink()
    document, costs = write_results(outcome)
    equal, compact = (document["arms"][name] for name in ("equal", "compact"))
    assert (equal["tokens"], equal["auc"], equal["learned"]["value"]) == (None, None, 1 / 8)
    assert compact["tokens"][0] > 0
    with (outcome.out / "study.csv").open() as file:
        tokens = {row["arm"]: row["tokens"] for row in csv.DictReader(file) if row["benchmark"] == "all"}
    assert (tokens["equal"], tokens["compact"] > "0") == ("", True)
    assert describe(document, costs)


def test_a_benchmark_that_not_all_runs_have_is_told_and_no_part_of_one_arms_mean(outcome):
    answer(outcome.runs["compact"][0] / "eval" / "student", "xxxxxxxx", task="t2")
    with pytest.raises(RunError, match="not every run of arm equal has results on t2, as other runs have"):
        collect(outcome)
    for seed in (0, 1):
        answer(outcome.runs["equal"][seed] / "eval" / "student", "........", task="t2")
    with pytest.raises(RunError, match="not every run of arm verified has results on t2"):
        collect(outcome)
    answer(outcome.runs["verified"][0] / "eval" / "student", "........", task="t2")
    assert collect(outcome)[0]["arms"]["compact"]["learned"]["value"] == 1.0
    (outcome.runs["equal"][1] / "eval" / "student" / "t.json").unlink()
    with pytest.raises(RunError, match="not every run of arm equal has results on t,"):
        collect(outcome)


def test_a_base_that_was_asked_other_rows_is_not_shown_beside_them(outcome):
    answer(outcome.out / "base", "x.......", ids="abcdefgz")
    with pytest.raises(RunError, match=r"base was not asked the same rows of t as other runs"):
        collect(outcome)


def test_arms_that_were_not_asked_the_same_rows_are_not_compared(outcome):
    answer(outcome.runs["compact"][0] / "eval" / "student", "xxxxxxxx", ids="abcdefgz")
    with pytest.raises(RunError, match="was not asked the same rows of t"):
        collect(outcome)


@pytest.mark.parametrize("whose", ["equal/seed-0/eval/student", "base"])
@pytest.mark.parametrize("change", [lambda text: text.replace("wrong", "correct"), lambda text: text[:60]])
def test_rows_that_were_flipped_or_cut_make_no_table(outcome, whose, change):
    rows = outcome.out / whose / "t.rows.jsonl"
    rows.write_text(change(rows.read_text()))
    with pytest.raises(RunError, match="is missing or not as it was written"):
        collect(outcome)


def test_a_table_does_not_depend_on_which_seed_came_first(outcome):
    first = write_results(outcome)
    outcome.runs["equal"] = dict(reversed(outcome.runs["equal"].items()))
    assert json.dumps(write_results(outcome)) == json.dumps(first), "the order within too"
