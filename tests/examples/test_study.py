"""The committed studies: they load, name the arms of the standard table, and end in the figures they are for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from compact_distill import load_instances
from compact_distill.evaluation.result_files import write_result
from compact_distill.study.arms import load_study
from compact_distill.study.findings import Outcome, write_results
from compact_distill.study.page import write_page
from report.synthetic import make_run

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "study"


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("main", {"equal", "compact", "paper", "verified", "rsr"}),
        ("small", {"equal", "verified", "compact"}),
        (
            "table",
            {"equal", "compact", "paper", "paper-5e-4", "verified", "rsr", "gate", "random", "grape", "lalp"}
            | {"union", "union-verified", "long_short", "best", "ties", "mot", "equal-1", "compact-1", "verified-1"},
        ),
        (
            "tune",
            {"consistent", "light", "plain", "cold", "gate", "equal", "verified"}
            | {"rate-1e-5", "rate-1e-4", "rate-1e-3", "compact-1e-3", "union-1e-3"}
            | {"equal-1", "compact-1", "union", "union-verified", "union-24"},
        ),
        ("second", {"equal", "compact", "verified", "rsr", "gpt-4", "union", "union-verified"}),
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


def test_the_standard_table_holds_the_main_arms_as_they_are():
    main, table = ({arm.name: arm for arm in load_study(FOLDER / f"{n}.yaml").arms} for n in ("main", "table"))
    assert {name: table[name].made_of for name in main} == {name: arm.made_of for name, arm in main.items()}


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


def finished_run(folder, seed):
    """A run folder as training and evaluation leave it, with raters' penalties, on made-up rationales."""
    make_run(folder, problems=12, epochs=4, seed=seed, students=())
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    for row in rows:
        for k, rationale in enumerate(row["rationales"]):
            rationale["numbers"] = {"mqm": float((k + len(row["id"])) % 4)}
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drift = folder / "eval" / "drift.json"
    write_result(drift, json.loads(drift.read_text()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"]["train"]["summary"] = {"seconds": 60.0 + seed, "peak_memory_gib": 1.5, "steps": 12}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def cells(page, key):
    """The figure's own part of the page, and the first column of its table."""
    part = page.split(f'id="fig-{key}"')[1].split("</figure>")[0]
    return part, [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<tr>\s*<t[hd][^>]*>(.*?)</t[hd]>", part, re.S)]


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("scores", {"minus_compact_learned": "Learned: minus compact", "auc": "Right above wrong"}),
        (
            "curriculum",
            {
                "curriculum": "Towards harder rationales",
                "drift_retained": "PCA shift, retained prompts",
                "cost": "Peak memory",
            },
        ),
        ("cross_domain", {"follows_mqm": "Weights against mqm", "minus_equal_retained": "Retained: minus equal"}),
    ],
)
def test_a_committed_study_ends_in_the_figures_it_is_for(name, figures, tmp_path):
    study = load_study(FOLDER / f"{name}.yaml", {"student": "other"})
    seeds = study.config.seeds
    runs = {
        arm.name: {s: finished_run(tmp_path / "arms" / arm.name / f"seed-{s}", 10 * i + s) for s in seeds}
        for i, arm in enumerate(study.arms)
    }
    shutil.copytree(tmp_path / "arms" / "equal" / f"seed-{seeds[0]}" / "eval" / "base", tmp_path / "base")
    document, costs = write_results(Outcome(tmp_path, study, runs, {}, {}, {}))
    page = write_page(tmp_path, document, costs).read_text()
    for key, words in figures.items():
        part, first_column = cells(page, key)
        assert words in part
        reference = key.split("_")[1] if key.startswith("minus") else None
        assert {arm.name for arm in study.arms} - {reference} <= set(first_column), key
