"""The committed studies: they load, and name the arms of the standard table."""

from __future__ import annotations

from pathlib import Path

import pytest

from compact_distill import load_instances
from compact_distill.study.arms import load_study

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "study"


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("main", {"equal", "compact", "paper", "verified", "rsr"}),
        ("small", {"equal", "verified", "compact"}),
        ("table", {"equal", "gate", "random", "grape", "lalp", "union", "best", "ties", "mot"}),
        (
            "tune",
            {"consistent", "light", "plain", "cold", "gate", "equal", "verified"}
            | {"rate-1e-5", "rate-1e-4", "rate-1e-3"},
        ),
        ("curriculum", {"equal", "compact", "paper"}),
        ("cross_domain", {"equal", "compact", "consensus_alone", "difficulty_alone", "rsr"}),
        (
            "scores",
            {"equal", "compact"}
            | {f"{score}_alone" for score in ("consensus", "adaptability", "difficulty")}
            | {f"without_{score}" for score in ("consensus", "adaptability", "difficulty")},
        ),
    ],
)
def test_a_committed_study_loads_with_the_arms_of_the_table(name, arms):
    study = load_study(FOLDER / f"{name}.yaml", {"student": "other"})
    assert {arm.name for arm in study.arms} == arms
    assert {arm.config.student for arm in study.arms} == {"other"}


@pytest.mark.parametrize("name", ["table", "scores"])
def test_studies_share_their_base_so_that_their_rows_can_stand_in_one_table(name):
    one, other = (load_study(FOLDER / f"{name}.yaml") for name in ("main", name))
    assert one.base == other.base
    assert one.config.limit == other.config.limit


def test_each_score_stands_alone_and_is_left_out_once():
    def coefficients(name):
        found = arms[name].compatibility
        return {score: getattr(found, score) for score in ("consensus", "adaptability", "difficulty")}

    arms = {arm.name: arm.config for arm in load_study(FOLDER / "scores.yaml").arms}
    whole = coefficients("compact")
    for score in whole:
        assert coefficients(f"{score}_alone") == {name: float(name == score) for name in whole}
        assert coefficients(f"without_{score}") == {**whole, score: 0.0}


def test_every_study_of_the_folder_is_in_its_readme_and_here():
    here = {file.name for file in FOLDER.iterdir() if file.suffix in (".yaml", ".py")}
    readme = (FOLDER / "README.md").read_text()
    assert {name for name in here if f"| `{name}` |" in readme} == here


def test_translations_are_learned_as_they_are_and_carry_their_raters_penalty(data_folder):
    study = load_study(FOLDER / "cross_domain.yaml", data=str(data_folder))
    assert study.base.text.rationale == "answer"
    (first, *_) = load_instances(study.base.rationales, limit=1)
    assert {type(r.extra["mqm"]) for r in first.rationales} == {float}


def test_the_papers_arm_has_its_own_rate():
    arms = {arm.name: arm.config for arm in load_study(FOLDER / "main.yaml").arms}
    assert arms["paper"].train["learning_rate"] == 1e-5
    assert arms["compact"].train["learning_rate"] == 5e-4
