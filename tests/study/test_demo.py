"""The demo end to end, small: the files it leaves, what it prints, and that it goes on instead of starting anew."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from compact_distill.lab.student import Recipe
from compact_distill.study.demo import DemoRecipe, run_demo, show

RECIPE = DemoRecipe(student=Recipe(steps=20, lines_per_step=8), problems=8, epochs=2, examined=6)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_CACHE", str(folder / "cache"))
        yield run_demo(folder / "out", seed=3, recipe=RECIPE), folder


def test_both_sides_train_on_the_rationales_that_the_teachers_were_asked_for(demo):
    result, _ = demo
    asked, used = (
        json.loads((result.output / side / "manifest.json").read_text()) for side in ("compact", "averaging")
    )
    assert asked["data"]["instances"] == used["data"]["instances"]
    assert asked["stages"]["generate"]["finished"]
    assert "generate" not in used["stages"]
    assert [teacher["backend"] for teacher in asked["decoding"]] == ["lab"] * 4


def test_averaging_gives_every_rationale_the_same_weight_and_compact_does_not(demo):
    result, _ = demo
    weights = {
        side: [json.loads(line)["weights"] for line in (result.output / side / "scores.jsonl").open()]
        for side in ("compact", "averaging")
    }
    assert all(row == [0.25] * 4 for row in weights["averaging"])
    assert any(max(row) > 0.3 for row in weights["compact"])


def test_the_table_tells_a_wrong_rationale_from_a_right_one(demo):
    result, _ = demo
    assert list(result.weights) == ["terse", "verbose", "erring, right", "erring, wrong", "foreign"]
    assert all(len(by_epoch) == RECIPE.epochs for by_epoch in result.weights.values())


def test_it_prints_accuracy_weights_and_where_the_report_is(demo):
    result, _ = demo
    console = Console(file=io.StringIO(), width=120)
    show(result, console)
    printed = console.file.getvalue()
    paths = [str(result.report), str(result.comparison)]
    for text in ("averaging", "COMPACT", "lab_arithmetic", "lab_facts", "erring, wrong", result.verdict, *paths):
        assert text in printed
    assert result.report.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_run_again_it_does_nothing_anew(demo, capsys):
    result, folder = demo
    before = {path: path.stat().st_mtime_ns for path in result.output.rglob("*.safetensors")}
    again = run_demo(folder / "out", seed=3, recipe=RECIPE)
    assert again.accuracy == result.accuracy
    assert {path: path.stat().st_mtime_ns for path in result.output.rglob("*.safetensors")} == before
    assert "train: done already" in capsys.readouterr().err
