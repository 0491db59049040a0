"""Kill, damage, rename and rerun a small pipeline at random: it ends like one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from compact_distill import pipeline
from compact_distill.errors import RunError
from compact_distill.runs.files import read_jsonl
from compact_distill.runs.folder import RunFolder
from soaking import make_inputs, start

_LONGEST = 120  # seconds for one run, however loaded the machine is


def outcome(path: Path) -> dict[str, Any]:
    """What a run came to: the student's weights, the trace, the rationales, the results; no times."""
    folder = RunFolder.open(path)
    weights = load_file(folder.student_path / "adapter_model.safetensors")
    results = {}
    for file in sorted((*folder.eval_path.glob("base/*.json"), *folder.eval_path.glob("student/*.json"))):
        results[f"{file.parent.name}/{file.name}"] = json.loads(file.read_text())["result"]
    return {
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
        "trace": list(read_jsonl(folder.scores_path)),
        "rationales": folder.training_path.read_text(),
        "data": folder.data_path.read_text(),
        "gains": folder.gains_path.read_text(),
        "results": results,
    }


class Soak:
    """A run that things happen to."""

    def __init__(self, tmp_path: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.settings = make_inputs(tmp_path)
        self.said = tmp_path / "said.txt"
        self.path = tmp_path / "run"
        self.moves = 0
        self.done: list[str] = []

    def run(
        self, verify: bool = False, until: float | None = None, number: int = signal.SIGKILL, **changes: Any
    ) -> int:
        """Run to the end, or to a signal after `until` seconds; the exit code."""
        settings = {**self.settings, **changes, "output": str(changes.get("output", self.path))}
        process = start(settings, self.said, verify)
        process.join(_LONGEST if until is None else until)
        if until is None:
            assert process.exitcode is not None, f"a run took more than {_LONGEST} s"
        elif process.exitcode is None:
            os.kill(process.pid, number)
            process.join(_LONGEST)
        return process.exitcode

    def whole(self, verify: bool = False) -> None:
        code = self.run(verify)
        assert code == 0, f"after {self.done}: {self.said.read_text()[-3000:]}"

    def files(self) -> list[Path]:
        """What may be damaged: everything that a stage has finished, and unfinished work that has a seal."""
        try:
            folder = RunFolder.open(self.path)
        except RunError:  # its manifest is damaged already
            return []
        names = [name for record in folder.manifest["stages"].values() for name in record.get("outputs") or ()]
        sealed = [p for p in folder.student_path.glob("checkpoint-*/*") if (p.parent / "complete.json").exists()]
        trace = [folder.scores_path] if sealed else []  # before that nothing vouches for it
        manifest = [folder.manifest_path]
        return sorted({*(self.path / name for name in names), *sealed, *trace, *manifest})

    # ---- what happens

    def fill_disk(self) -> str:
        largest = self.random.choice([1_000, 6_000, 20_000, 60_000])
        process = start({**self.settings, "output": str(self.path)}, self.said, largest=largest)
        process.join(_LONGEST)
        assert process.exitcode is not None
        return f"no file over {largest} bytes"

    def kill(self) -> str:
        seconds = self.random.uniform(0, 1.2 * self.seconds)
        number = self.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        self.run(until=seconds, number=number)
        return f"signal {number} after {seconds:.2f} s"

    def damage(self) -> str:
        there = [path for path in self.files() if path.is_file()]
        if not there:
            return self.rerun()
        path = self.random.choice(there)
        how = self.random.choice(["delete", "cut", "flip", "grow", "empty"])
        data = path.read_bytes()
        if how == "delete":
            path.unlink()
        elif how == "flip" and data:
            at = self.random.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        else:
            cut = data[: self.random.randrange(len(data) or 1)]
            path.write_bytes({"cut": cut, "grow": data + b"\0garbage", "empty": b"", "flip": b"x"}[how])
        return f"{how} {path.relative_to(self.path)}"

    def rename(self) -> str:
        self.moves += 1
        moved = self.path.with_name(f"run-{self.moves}")
        self.path.rename(moved)
        self.path = moved
        return f"rename to {moved.name}"

    def change_settings(self) -> str:
        self.run(until=self.random.uniform(0, self.seconds), train={**self.settings["train"], "learning_rate": 0.02})
        return "other settings for a while"

    def rerun(self) -> str:
        self.whole(verify=self.random.random() < 0.5)
        return "rerun"


def soak(tmp_path: Path, seed: int, events: int, seconds: float) -> None:
    """Let `events` things happen, or as many as `seconds` allow, and compare the end with a run left alone."""
    alone = Soak(tmp_path, seed)
    alone.path = tmp_path / "alone"
    began = time.monotonic()
    alone.whole()
    expected = outcome(alone.path)
    soaked = Soak(tmp_path, seed)
    soaked.seconds = time.monotonic() - began
    soaked.whole()
    choices = (
        soaked.kill,
        soaked.damage,
        soaked.damage,
        soaked.fill_disk,
        soaked.rename,
        soaked.change_settings,
        soaked.rerun,
    )
    began = time.monotonic()
    while len(soaked.done) < events and time.monotonic() - began < seconds:
        soaked.done.append(soaked.random.choice(choices)())
    soaked.whole(verify=True)
    found = outcome(soaked.path)
    for part, value in expected.items():
        assert found[part] == value, f"{part} differ after {soaked.done}"
    assert pipeline.damage_of(RunFolder.open(soaked.path), verify=True) == []
    assert "Traceback" not in soaked.said.read_text(), f"after {soaked.done}"
    print(f"{len(soaked.done)} events: {soaked.done}")


def test_a_pipeline_that_is_killed_damaged_and_renamed_ends_like_one_left_alone(tmp_path):
    soak(tmp_path, seed=0, events=8, seconds=60)


def test_a_run_whose_disk_was_full_ends_like_one_left_alone(tmp_path):
    run = Soak(tmp_path, 0)
    for largest in (1_000, 6_000, 20_000, 60_000):  # the manifest, the trace, the adapter, a checkpoint
        process = start({**run.settings, "output": str(run.path)}, run.said, largest=largest)
        process.join(_LONGEST)
        assert process.exitcode == 2
    assert "Traceback" not in run.said.read_text()
    run.whole()
    alone = Soak(tmp_path, 0)
    alone.path = tmp_path / "alone"
    alone.whole()
    assert outcome(run.path) == outcome(alone.path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_long_soak_ends_like_a_run_left_alone(tmp_path, seed):
    soak(tmp_path, seed, events=50, seconds=300)
