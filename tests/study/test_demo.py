"""The demo end to end, small: the files it leaves, what it prints, and that it goes on instead of starting anew."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from compact_distill.lab.student import Recipe
from compact_distill.study import demo as demo_module
from compact_distill.study.demo import DemoRecipe, DemoResult, run_demo, show

RECIPE = DemoRecipe(student=Recipe(steps=20, lines_per_step=8), problems=8, epochs=2, examined=6)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_CACHE", str(folder / "cache"))
        (folder / "out").mkdir()
        for name in ("problems.jsonl", "results.json"):
            (folder / "out" / name).write_text("a user's own")
        yield run_demo(folder / "out", seed=3, recipe=RECIPE), folder


def runs(result):
    return {name: result.output / "study" / arm["runs"]["3"] for name, arm in result.study["arms"].items()}


def test_all_arms_train_on_the_rationales_that_the_teachers_were_asked_for_once(demo):
    result, _ = demo
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs(result).values()]
    assert len({json.dumps(manifest["data"]["files"]) for manifest in manifests}) == 1
    assert not any("generate" in manifest["stages"] for manifest in manifests)
    asked = json.loads((result.output / "study" / "teachers" / "manifest.json").read_text())
    assert asked["stages"]["generate"]["finished"]


def test_equal_weighs_all_alike_verified_the_right_ones_and_compact_as_they_fit(demo):
    result, _ = demo
    weights = {
        name: [json.loads(line)["weights"] for line in (run / "scores.jsonl").read_text().splitlines()]
        for name, run in runs(result).items()
    }
    assert all(row == [0.25] * 4 for row in weights["equal"])
    assert any(0 in row for row in weights["verified"])
    assert all(len(set(row) - {0}) == 1 for row in weights["verified"])
    assert any(max(row) > 0.3 for row in weights["compact"])


def test_the_table_tells_a_wrong_rationale_from_a_right_one(demo):
    result, _ = demo
    assert list(result.weights) == ["terse", "verbose", "erring, right", "erring, wrong", "foreign"]
    assert all(len(by_epoch) == RECIPE.epochs for by_epoch in result.weights.values())


def test_it_prints_accuracy_weights_and_where_the_pages_are(demo):
    result, _ = demo
    console = Console(file=io.StringIO(), width=120)
    show(result, console)
    printed = console.file.getvalue()
    paths = [str(result.report), str(result.comparison)]
    for text in ("base", "equal", "verified", "compact", "erring, wrong", result.verdict, *paths):
        assert text in printed
    for page in (result.report, result.comparison):
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("sign", ["\x1b", "\x9b", "\u202e", "\u2067"])
def test_the_terminal_obeys_nothing_that_the_demo_prints(monkeypatch, sign):
    told = f"a{sign}[2Jb [bold]"
    monkeypatch.setattr(demo_module, "describe", lambda *_: [told])
    place = Path(told)
    console = Console(file=io.StringIO(), width=200)
    show(DemoResult({}, {}, {told: [0.5]}, place, place, place, told, 1.0), console)
    printed = console.file.getvalue()
    assert sign not in printed
    assert printed.count("a\ufffd[2Jb [bold]") == 6


def test_a_users_own_files_of_the_same_names_are_moved_aside(demo):
    _, folder = demo
    for name in ("problems.jsonl", "results.json"):
        assert "a user's own" in {path.read_text() for path in (folder / "out").glob(f"{name}.*")}


def test_run_again_it_does_nothing_anew(demo, capsys):
    result, folder = demo
    before = {path: path.stat().st_mtime_ns for path in result.output.rglob("*.safetensors")}
    again = run_demo(folder / "out", seed=3, recipe=RECIPE)
    assert again.study == result.study
    assert {path: path.stat().st_mtime_ns for path in result.output.rglob("*.safetensors")} == before
    assert "compact/seed-3 started" not in capsys.readouterr().err
