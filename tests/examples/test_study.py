"""The committed studies: they load, and name the arms of the standard table."""

from __future__ import annotations

from pathlib import Path

import pytest

from compact_distill.study.arms import load_study

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "study"


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("main", {"equal", "compact", "paper", "verified", "rsr"}),
        ("small", {"equal", "verified", "compact"}),
        ("table", {"equal", "gate", "random", "grape", "lalp", "union", "best", "ties", "mot"}),
    ],
)
def test_a_committed_study_loads_with_the_arms_of_the_table(name, arms):
    study = load_study(FOLDER / f"{name}.yaml", {"student": "other"})
    assert {arm.name for arm in study.arms} == arms
    assert {arm.config.student for arm in study.arms} == {"other"}


def test_both_studies_share_their_base_so_that_their_rows_can_stand_in_one_table():
    one, other = (load_study(FOLDER / f"{name}.yaml") for name in ("main", "table"))
    assert one.base == other.base
    assert one.config.limit == other.config.limit


def test_the_papers_arm_has_its_own_rate():
    arms = {arm.name: arm.config for arm in load_study(FOLDER / "main.yaml").arms}
    assert arms["paper"].train["learning_rate"] == 1e-5
    assert arms["compact"].train["learning_rate"] == 5e-4
