"""Arms: how they change the base, and every way in which a study file can be wrong, told before any work."""

from __future__ import annotations

import pytest

from compact_distill.config.yaml import parse
from compact_distill.data import load_instances
from compact_distill.errors import ConfigError
from compact_distill.records import AnswerFrom, Instance, Rationale, Verdict
from compact_distill.runs.files import json_line
from compact_distill.study.arms import (
    StudyConfig,
    as_row,
    load_study,
    long_short,
    make_study,
    only_teacher,
    study_template,
)

BASE = {"student": "s", "rationales": "r.jsonl", "train": {"learning_rate": 1e-3, "num_train_epochs": 2}}


def refused(path, **more):
    with pytest.raises(ConfigError) as caught:
        load_study(path, **more)
    return "\n".join(caught.value.problems)


def test_an_arm_changes_the_keys_that_it_names_and_no_others(write_study):
    arms = {"compact": {}, "hot": {"compatibility": {"temperature": 2.0}, "train": {"learning_rate": 1e-4}}}
    study = load_study(write_study(base=BASE, arms=arms))
    plain, hot = (arm.config for arm in study.arms)
    assert (hot.compatibility.temperature, hot.train["learning_rate"], hot.train["num_train_epochs"]) == (2.0, 1e-4, 2)
    assert hot.compatibility.model_copy(update={"temperature": 0.5}) == plain.compatibility


def test_what_the_command_line_sets_is_the_bases_and_an_arms_own_word_counts_more(write_study):
    path = write_study(base=BASE, arms={"compact": {}, "slow": {"train": {"learning_rate": 1e-6}}})
    study = load_study(path, {"student": "other", "train.learning_rate": 1e-2})
    assert [arm.config.student for arm in study.arms] == ["other", "other"]
    assert [arm.config.train["learning_rate"] for arm in study.arms] == [1e-2, 1e-6]


def test_files_are_taken_from_the_data_folder_where_they_are_there(write_study, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("r.jsonl", "csqa.jsonl"):
        (tmp_path / "data" / name).write_text("")
    base = {**BASE, "eval": {"learned": ["csqa=csqa.jsonl", "gsm8k"]}}
    study = load_study(write_study(base=base, arms={"compact": {}}), data=str(tmp_path / "data"))
    assert study.base.rationales == (str(tmp_path / "data" / "r.jsonl"),)
    assert study.base.eval.learned == (f"csqa={tmp_path / 'data' / 'csqa.jsonl'}", "gsm8k")


def test_an_unknown_arm_is_named_with_the_nearest_one(write_study):
    study = load_study(write_study(base=BASE, arms={"compact": {}}))
    with pytest.raises(ConfigError, match=r"no arm is named 'compat'.*did you mean 'compact'"):
        study.only(["compat"], [])


@pytest.mark.parametrize(
    "arms",
    [{"a": {}, "b": {"lora": {"r": 16}}}, {"a": {"merge": "mot"}, "b": {"merge": "mot", "rounds": 5}}],
)
def test_an_arm_without_effect_is_refused(write_study, arms):
    assert "arm b is the same as arm a" in refused(write_study(base=BASE, arms=arms))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"arms": {}}, "arms must not be empty, got {}"),
        ({"seeds": []}, "seeds must not be empty, got []; remove the key to use the defaults"),
        ({"base": 3}, "base must be text or hold `key: value` lines, got 3"),
        ({"seeds": [0, -1]}, "seeds[1] must be >= 0, got -1; remove the key to use the defaults"),
        ({"seeds": [2**40]}, f"seeds[0] must be < 4294967296, got {2**40}; remove the key to use the defaults"),
    ],
)
def test_a_wrong_study_is_told_in_one_line_of_plain_words(write_study, keys, told):
    path = write_study(**{"base": BASE, "arms": {"a": {}}, **keys})
    assert refused(path) == f"{path}: {told}"


def test_a_data_folder_that_is_not_there_is_refused(write_study, tmp_path):
    path = write_study(base=BASE, arms={"a": {}}, data=str(tmp_path / "none"))
    assert refused(path).startswith(f"data (or --data, COMPACT_DATA) must be a folder, got '{tmp_path / 'none'}'")
    assert "must be a folder, got '/nowhere'" in refused(path, data="/nowhere")
    assert load_study(path, data=str(tmp_path))


def test_seeds_twice_are_refused_in_the_file_and_on_the_command_line(write_study):
    assert "must name each seed once, got 1 twice" in refused(write_study(base=BASE, arms={"a": {}}, seeds=[1, 2, 1]))
    with pytest.raises(ConfigError, match="names 3 twice"):
        load_study(write_study(base=BASE, arms={"a": {}})).only([], [3, 3])


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_on_the_command_line_must_be_one(write_study, seed):
    with pytest.raises(ConfigError, match=f"--seeds must be from 0 to 4294967295, got {seed}; choose another"):
        load_study(write_study(base=BASE, arms={"a": {}})).only([], [seed])


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"merge": "tie"}, "merge must be one of"),
        ({"merge": "ties", "single": "x"}, "at most one of merge, single and mix, got merge and single"),
        ({"wieghting": "equal"}, "'wieghting' is no setting of a run or an arm; did you mean 'weighting'?"),
        ({"output": "x"}, "output is the study's own"),
        ({"student": "other"}, "student is the study's own, and the same for all arms"),
        ({"eval": {"limit": 5}}, "eval is the study's own, and the same for all arms"),
        ({"train": {"num_train_epochs": 3}}, "train.num_train_epochs is decided by `budget: tokens`"),
        ({"single": "best"}, "single: best is chosen on tuning rows"),
        ({"merge": "ties", "density": 0.0}, "density must be > 0, got 0.0"),
        ({"density": 0.2, "consistency": 0.1}, "density does nothing without `merge: ties | dare_ties | dare_linear`"),
        ({"merge": "average", "scale": 0.5}, "scale does nothing without `merge: task_arithmetic | ties |"),
        ({"merge": "ties", "steps": 5}, "steps does nothing without `merge: mot`; remove it"),
        ({"single": "a", "rounds": 2}, "rounds does nothing without `merge: mot`; remove it"),
        ({"generation": {"rejection": "correct_only"}}, "generation is the study's own, and the same for all arms"),
        ({"report": {"gains": False}, "consistency": 0.2}, "report is the study's own, and the same for all arms"),
        ({"card": {"license": "mit"}, "consistency": 0.2}, "card is the study's own, and the same for all arms"),
        (
            {"mix": "long_short", "example": "rationale", "weighting": "equal"},
            "mix: long_short needs a problem's rationales together; write `example: problem` in the arm",
        ),
    ],
)  # fmt: skip
def test_a_wrong_arm_is_told_with_its_name(write_study, arm, message):
    told = refused(write_study(base=BASE, arms={"compact": {}, "wrong": arm}))
    assert "arm wrong: " in told
    assert message in told


@pytest.mark.parametrize("key", ["problems", "rationales"])
def test_an_arm_cannot_read_other_rows_than_the_bases_teachers_write(write_study, key):
    asked = [{"name": "a", "backend": "lab", "model": "terse"}]
    own = {"problems": {"limit": 5}, "rationales": "own.jsonl"}[key]
    base = {"student": "s", "problems": {"path": "p.jsonl"}, "teachers": asked}
    told = refused(write_study(base=base, arms={"compact": {}, "few": {key: own}}))
    assert told.startswith(f"arm few: {key} is not read: all arms read what the base's teachers write")
    assert load_study(
        write_study(base=BASE | {"problems": {"path": "p.jsonl"}}, arms={"compact": {}, "few": {key: own}})
    )


def test_all_that_is_wrong_is_told_at_once(write_study):
    wrong = {"a": {"merge": "tie"}, "b": {"nothing": 1, "seed": 3, "density": 0.5}}
    told = refused(write_study(base=BASE, arms=wrong)).splitlines()
    assert [line[:16] for line in told] == [
        "arm a: merge mus",
        "arm b: density d",
        "arm b: 'nothing'",
        "arm b: seed is t",
    ]


def test_an_arms_name_must_do_as_a_folder(write_study):
    assert "letters, digits, - and _" in refused(write_study(base=BASE, arms={"../x": {}}))


def test_the_template_is_a_valid_study_with_the_plain_baselines(tmp_path):
    document = parse(study_template())
    assert document.problems == []
    assert list(document.data["arms"]) == ["compact", "equal", "verified", "plain-mix"]
    path = tmp_path / "study.yaml"
    path.write_text(study_template().replace("base: run.yaml", "base: {student: s, rationales: r.jsonl}"))
    assert len(load_study(path).arms) == 4


ROWS = [
    Instance(
        f"p{i}",
        f"q{i}",
        "1",
        (Rationale("a", "long text"), Rationale("b", "x" if i else ""), Rationale("a", "y", sample=1)),
    )
    for i in range(10)
]


def test_one_teachers_rationales_are_kept_with_all_its_samples():
    assert [[(r.teacher, r.sample) for r in i.rationales] for i in only_teacher(ROWS, "a")] == [
        [("a", 0), ("a", 1)]
    ] * 10
    assert [[r.teacher for r in i.rationales] for i in only_teacher(ROWS, "b")] == [["b"]] * 10
    assert [i.rationales for i in only_teacher(ROWS[:1], "nobody")] == [()], "the problem stays, for its benchmark rows"


def test_a_fifth_of_the_problems_keep_their_longest_rationale_the_others_their_shortest():
    tokens = {f"p{i}": [9, 0 if i == 0 else 3, 5] for i in range(10)}
    lengths = [
        tokens[row.id][
            next(k for k, r in enumerate(ROWS[0].rationales) if (r.teacher, r.sample) == (x.teacher, x.sample))
        ]
        for row in long_short(ROWS, tokens)
        for x in row.rationales
    ]
    assert sorted(lengths).count(9) == 2
    assert set(lengths) <= {9, 3, 5}


def test_an_arrangement_written_and_read_again_is_the_same_also_in_where_answers_were_found(tmp_path):
    found = Rationale("a", "So 18 it is.", "18", 1, Verdict.WRONG, AnswerFrom.INFERRED, {"mqm": 2.0})
    made = Instance("p", "q", "1", (found, Rationale("b", "")), {"choices": {"A": "1"}})
    (tmp_path / "made.jsonl").write_text(json_line(as_row(made)))
    assert list(load_instances(tmp_path / "made.jsonl")) == [made]


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({}, "each rationale as much as it fits the student, by its scores"),
        ({"weighting": {"best": "difficulty"}}, "one rationale a problem: the best by difficulty"),
        ({"weighting": {"gate": "compact"}}, "right rationales only, then as compact"),
        ({"merge": "ties"}, "one student a teacher, merged (ties)"),
        ({"single": "terse"}, "terse alone"),
        ({"example": "rationale", "weighting": "equal"}, "each rationale an example of its own"),
        ({"example": "rationale", "weighting": "verified"}, "each right rationale an example of its own"),
        (
            {"mix": "long_short", "weighting": "verified"},
            "one rationale a problem: the longest of every fifth, else the shortest, if it is right",
        ),
    ],
)
def test_an_arm_says_in_words_what_it_is(base, arm, words):
    (made,) = make_study(StudyConfig(base=base, arms={"a": arm})).arms
    assert made.in_words() == words


def test_a_setting_of_training_in_an_arm_is_shown_its_place(write_study):
    with pytest.raises(ConfigError) as caught:
        load_study(write_study(base=BASE, arms={"a": {"learning_rate": 1e-4}}))
    (told,) = caught.value.problems
    assert told == "arm a: 'learning_rate' is no setting of a run or an arm; it belongs under `train:`"


def test_a_base_that_is_not_there_is_said_to_come_from_init(write_study, tmp_path):
    with pytest.raises(ConfigError, match="`compact init` writes one"):
        load_study(write_study(base=str(tmp_path / "nope.yaml"), arms={"a": {}}))
