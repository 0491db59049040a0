"""What a study reads from its runs' training: values worked out by hand, on run folders of six small problems."""

from __future__ import annotations

import json

import pytest

from compact_distill.errors import RunError
from compact_distill.runs.folder import RunFolder
from compact_distill.study.training import (
    StepTimes,
    Timed,
    cost_section,
    costs_of,
    ingredients,
    read_step_times,
    weight_section,
    weights_of,
)

VERDICTS = ("correct", "wrong", "wrong")


COPIES = 3  # six problems are enough for an interval


def run_folder(folder, weights, penalties=((0.0, 5.0, 10.0), (0.0, 5.0, 10.0)), copies=COPIES):
    """A run that read its problems once an epoch; `weights[epoch][problem]` are those of teachers a, b and c."""
    with RunFolder.claim(folder):
        pass
    rows, trace = [], []
    for p, numbers in enumerate(penalties * copies):
        rationales = [
            {"teacher": t, "sample": 0, "verdict": v, "tokens": 10 * (k + 1), "numbers": {"mqm": n}}
            for k, (t, v, n) in enumerate(zip("abc", VERDICTS, numbers, strict=True))
        ]
        rows.append({"id": f"p{p}", "question": "q", "answer": "1", "rationales": rationales})
    for epoch, of_problems in enumerate(weights):
        for p, own in enumerate(of_problems * copies):
            scores = {name: [0.1, 0.2, 0.3] for name in ("consensus", "adaptability", "difficulty")}
            trace.append({"epoch": epoch, "step": epoch, "id": f"p{p}", "teachers": ["a", "b", "c"],
                          "weights": own, **scores})  # fmt: skip
    for name, lines in (("data.jsonl", rows), ("scores.jsonl", trace)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


DOWN, UP, FIRST = [0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.5, 0.0, 0.5]


def test_tokens_areas_and_correlations_are_those_of_the_readings(tmp_path):
    found = weights_of([[run_folder(tmp_path / "r", [[DOWN, UP]])]])
    assert found["tokens"] == [360]  # (10 + 20 + 30) six times
    assert found["tokens_with_weight"] == [360]
    # The right one weighs more than both wrong ones in p0, less than both in p1.
    assert found["auc"]["value"] == 0.5
    assert found["auc"]["problems"] == 6
    # The penalty rises with k: rank correlation -1 in p0, +1 in p1.
    assert found["follows"]["mqm"]["value"] == pytest.approx(0.0, abs=1e-12)
    down = weights_of([[run_folder(tmp_path / "down", [[DOWN, DOWN]])]])
    assert down["follows"]["mqm"]["value"] == pytest.approx(-1.0)
    assert down["auc"]["value"] == 1.0
    # Six problems that all agree are no certainty: Wilson's of 6 of 6, and Tango's of as many that all differ.
    z2 = 1.959964**2
    assert (down["auc"]["low"], down["auc"]["high"]) == (pytest.approx(6 / (6 + z2)), 1.0)
    assert (down["follows"]["mqm"]["low"], down["follows"]["mqm"]["high"]) == (-1.0, pytest.approx((z2 - 6) / (6 + z2)))


def test_of_fewer_than_five_problems_no_interval_is_told(tmp_path):
    for copies, told in ((2, False), (3, True)):  # four problems, six
        found = weights_of([[run_folder(tmp_path / f"{copies}", [[DOWN, DOWN]], copies=copies)]])
        assert (found["auc"] is not None, "mqm" in found["follows"]) == (told, told)
        moved = weights_of([[run_folder(tmp_path / f"m{copies}", [[DOWN] * 2, [DOWN] * 2, [UP] * 2], copies=copies)]])
        assert bool(moved["curriculum"]) == told


def test_tokens_without_weight_are_read_but_not_weighed(tmp_path):
    found = weights_of([[run_folder(tmp_path / "r", [[FIRST, DOWN]])]])
    assert (found["tokens"], found["tokens_with_weight"]) == ([360], [300])


LOST = {  # what becomes of a file's text; None: it is gone
    "no data.jsonl": ("data.jsonl", lambda text: None),
    "half of data.jsonl": ("data.jsonl", lambda text: text[:500]),
    "a damaged line of data.jsonl": ("data.jsonl", lambda text: "{\n" + text),
    "no scores.jsonl": ("scores.jsonl", lambda text: None),
    "a damaged line of scores.jsonl": ("scores.jsonl", lambda text: text + "{\n"),
}


@pytest.mark.parametrize("what", LOST)
def test_a_run_that_lost_what_only_reports_read_leaves_its_arm_without_these_numbers(tmp_path, capsys, what):
    runs = [run_folder(tmp_path / name, [[DOWN, UP]]) for name in ("whole", "lost")]
    name, change = LOST[what]
    text = change((runs[1] / name).read_text())
    (runs[1] / name).unlink()
    if text is not None:
        (runs[1] / name).write_text(text)
    found = weights_of([[run] for run in runs])
    assert (found["tokens"], found["tokens_with_weight"], found["auc"], found["follows"]) == (None, None, None, {})
    told = capsys.readouterr().err
    assert f"{runs[1]}: data.jsonl or scores.jsonl is not whole" in told
    assert str(runs[0]) not in told
    arms = {"compact": {**found, "drift": {}, "runs": {"0": "whole", "1": "lost"}}}
    costs = {"arms": {"compact": {"train_seconds": [1.0, 1.0], "peak_memory_gib": [1.0, 1.0], "steps": [2, 2]}}}
    ((_, table),) = cost_section(tmp_path, arms, costs).tables
    assert table.rows[0][:3] == ("compact", None, None)
    assert [figure.key for figure in weight_section(arms).figures if figure.key != "curriculum"] == []


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
    assert found["tokens"] == [6 * 360]
    assert found["curriculum"] == {}
    assert found["auc"]["value"] == 0.5


def test_the_section_names_what_the_data_brings(tmp_path):
    arm = {**weights_of([[run_folder(tmp_path / "r", [[DOWN, UP]] * 3)]]), "drift": {}, "runs": {"0": "r"}}
    figures = {figure.key: figure for figure in weight_section({"compact": arm}).figures}
    assert set(figures) == {"auc", "follows_mqm", "curriculum"}
    assert figures["follows_mqm"].table.rows[0][0] == "compact"


# ---- what it took


def trained(folder, seed=0, **summary):
    """A run folder whose student was made of `parts`."""
    parts = {"student": "abc", "data": "def", "lora": {"r": 16}, "seed": seed}
    with RunFolder.claim(folder) as run, run.stage("train", "inputs", parts=parts) as found:
        found.update(summary)
    return folder


def test_costs_of_a_merged_student_are_those_of_all_its_parts(tmp_path):
    one = trained(tmp_path / "one", seconds=10.0, peak_memory_gib=1.0, steps=5)
    two = trained(tmp_path / "two", seconds=20.0, peak_memory_gib=3.0, steps=6)
    assert costs_of([[one, two], [one]]) == {
        "train_seconds": [30.0, 10.0], "peak_memory_gib": [3.0, 1.0], "steps": [11, 5]
    }  # fmt: skip


GIB = 2**30


@pytest.fixture
def study(tmp_path):
    """A study of two arms that are done, a step of each timed beside two settings of TRL's."""
    arms = {}
    for name in ("equal", "compact"):
        trained(tmp_path / "arms" / name / "seed-0")
        arms[name] = {"runs": {"0": f"arms/{name}/seed-0"}, "tokens": [100], "tokens_with_weight": [90]}
    made_of = {name: ingredients(tmp_path / "arms" / name / "seed-0") for name in arms}
    # In the second round the machine was ten times slower, for all: its ratios are as good as the others.
    ours = {
        "equal": Timed(seconds=(1.0, 12.0, 1.2), peak=GIB),
        "compact": Timed(seconds=(2.0, 30.0, 2.0), peak=2 * GIB),
    }
    theirs = {
        "TRL, packed": Timed(seconds=(4.0, 40.0, 4.0), peak=8 * GIB),
        "TRL, one sequence at a time": Timed(seconds=(2.0, 20.0, 2.0), peak=4 * GIB),
    }
    machine = {"processor": "<b>Cpu</b>", "cores": 2, "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"}
    found = StepTimes(
        date="2026-11-26", machine=machine, load=0.1, problems=8, step=4, rationales=6, made_of=made_of,
        arms=ours, trl=theirs,
    )  # fmt: skip
    (tmp_path / "trl.json").write_text(found.model_dump_json())
    costs = {"arms": {name: {"train_seconds": [s], "peak_memory_gib": [1.0], "steps": [30]}
                      for name, s in (("equal", 60.0), ("compact", 90.0))}}  # fmt: skip
    return tmp_path, arms, costs


def changed(study, change):
    """The study with its trl.json changed."""
    path = study[0] / "trl.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    return study


def test_a_step_beside_trl_is_shown_as_shares_of_its_fastest_setting_round_by_round(study):
    figure = next(figure for figure in cost_section(*study).figures if figure.key == "beside_trl")
    rows = {row[0]: row[1:] for row in figure.table.rows}
    # Seconds a step; median, least and most of the rounds' ratios; GiB and its ratio; minutes of 30 steps.
    assert rows["equal"] == (1.2, 0.6, 0.5, 0.6, 1.0, 0.25, pytest.approx(0.6))
    assert rows["compact"] == (2.0, 1.0, 1.0, 1.5, 2.0, 0.5, pytest.approx(1.0))
    assert rows["TRL, one sequence at a time"] == (2.0, 1.0, 1.0, 1.0, 4.0, 1.0, pytest.approx(1.0))
    assert rows["TRL, packed"] == (4.0, 2.0, 2.0, 2.0, 8.0, 2.0, pytest.approx(2.0))
    for words in ("(TRL, one sequence at a time)", "4 problems of 6 rationales a step, 8 problems a round",
                  "2026-11-26", "2 cores", "trl 1.16.0", "30 steps, as many as equal makes"):  # fmt: skip
        assert words in figure.caption
    assert "busy" not in figure.caption


def test_a_runs_minutes_are_of_as_many_steps_as_the_timed_arm_makes(study):
    costs = study[2]
    costs["arms"]["compact"]["steps"] = [120]  # of one problem each, where equal's are of four
    study = changed(study, lambda found: [found[key].pop("equal") for key in ("arms", "made_of")])
    (figure,) = (figure for figure in cost_section(*study).figures if figure.key == "beside_trl")
    assert {row[0]: row[-1] for row in figure.table.rows}["compact"] == pytest.approx(2.0 * 120 / 60)
    assert "120 steps, as many as compact makes" in figure.caption


def test_a_busy_machine_and_a_trainer_that_failed_are_told(study):
    study = changed(study, lambda found: found.update(load=1.5, failed={"TRL, four padded together": "out of memory"}))
    (figure,) = (figure for figure in cost_section(*study).figures if figure.key == "beside_trl")
    assert "The machine was busy (load 1.5): times are noisy." in figure.caption
    assert "TRL, four padded together failed: out of memory." in figure.caption


def test_without_a_measurement_the_page_says_how_to_make_one(study):
    (study[0] / "trl.json").unlink()
    section = cost_section(*study)
    assert [figure.key for figure in section.figures] == ["cost"]
    assert 'Beside TRL: not measured; run make bench ARGS="--study FOLDER"' in section.lede


DAMAGE = {
    "torn": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: "\x00",
    "no number": lambda text: text.replace("12.0", "NaN"),
    "a negative time": lambda text: text.replace("12.0", "-12.0"),
    "rounds of unequal number": lambda text: text.replace("12.0,", ""),
    "nothing of TRL's": lambda text: json.dumps({**json.loads(text), "trl": {}}),
    "an arm whose run is not named": lambda text: json.dumps({**json.loads(text), "made_of": {}}),
    "another format": lambda text: text.replace('"format":1', '"format":2'),
    "a date that is none": lambda text: text.replace("2026-11-26", "<script>"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_measurement_is_told_and_not_shown(what, study):
    path = study[0] / "trl.json"
    damaged = DAMAGE[what](path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    section = cost_section(*study)
    assert [figure.key for figure in section.figures] == ["cost"]
    assert "Beside TRL: trl.json is damaged (" in section.lede
    assert "is not shown; run make bench" in section.lede


def test_a_measurement_of_another_study_is_told_and_not_shown(study):
    out, arms, _ = study
    assert read_step_times(out, arms).fastest == "TRL, one sequence at a time"
    changed(study, lambda found: found["made_of"]["compact"].update(student="f" * 64))
    with pytest.raises(RunError, match=r"measured on another study \(compact: other student\) and is not shown"):
        read_step_times(out, arms)
    changed(study, lambda found: found["made_of"]["equal"].update(data="f" * 64, more="f" * 64))
    assert "(equal: other data and more; compact: other student)" in cost_section(*study).lede
    with pytest.raises(RunError, match="equal: no such run here"):
        read_step_times(out, {})


def test_other_seeds_of_the_same_study_are_the_same_study(study):
    out, arms, _ = study
    trained(out / "arms" / "equal" / "seed-7", seed=7)
    arms["equal"]["runs"] = {"7": "arms/equal/seed-7"}
    assert read_step_times(out, arms).step == 4
