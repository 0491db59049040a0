"""benchmarks/lab.py at a size of seconds: the demo's arms and the settings under other values, over seeds."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from compact_distill.lab.student import Recipe
from compact_distill.study import demo

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "lab.py"


def test_every_arm_has_a_share_for_every_task_and_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COMPACT_CACHE", str(tmp_path / "cache"))
    toy = demo.DemoRecipe(student=Recipe(steps=20, lines_per_step=8), problems=8, epochs=1, examined=6)
    monkeypatch.setattr(demo, "DemoRecipe", lambda arms: demo.replace(toy, arms={name: arms[name] for name in KEPT}))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / "out"), "--seeds", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    shares = json.loads((tmp_path / "out" / "lab.json").read_text())
    assert set(shares) == set(KEPT)
    assert all(set(tasks) == {"lab_arithmetic", "lab_facts", "lab_yes_no"} for tasks in shares.values())
    assert all(len(values) == 1 for tasks in shares.values() for values in tasks.values())
    assert "plain\n    lab_arithmetic" in capsys.readouterr().out


KEPT = ("equal", "compact", "plain")
