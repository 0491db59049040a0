"""A small world for studies: a student of the lab, its teachers' rationales, and a base configuration."""

from __future__ import annotations

import json

import pytest

from compact_distill.lab import arithmetic, instances, pool
from compact_distill.lab.student import Recipe, cached_student


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with `student`, `train.jsonl` (12 problems, four teachers) and `tune.jsonl`."""
    folder = tmp_path_factory.mktemp("world")
    student = cached_student(Recipe(steps=20, lines_per_step=8), cache=folder / "cache")
    (folder / "student").symlink_to(student)
    with (folder / "train.jsonl").open("w") as file:
        for i in instances(arithmetic("train", 12, 0), pool()):
            rationales = [{"teacher": r.teacher, "text": r.text} for r in i.rationales]
            row = {"id": i.id, "question": i.question, "answer": i.answer, "rationales": rationales}
            file.write(json.dumps(row) + "\n")
    with (folder / "tune.jsonl").open("w") as file:
        for p in arithmetic("tuning", 4, 0):
            file.write(json.dumps({"id": p.id, "question": p.question, "answer": p.answer}) + "\n")
    return folder


@pytest.fixture
def base(world):
    """The keys of a base configuration."""
    return {
        "student": str(world / "student"),
        "rationales": str(world / "train.jsonl"),
        "train": {
            "learning_rate": 1e-3,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "save_strategy": "steps",
            "save_steps": 2,
        },
        "eval": {
            "learned": ["lab_arithmetic"],
            "retained": ["lab_facts"],
            "limit": 6,
            "max_new_tokens": 24,
            "drift_rows": 6,
        },
    }


@pytest.fixture
def write_study(tmp_path):
    """Write a study file and return its path."""
    import yaml

    def write(**keys):
        path = tmp_path / "study.yaml"
        keys.setdefault("output", str(tmp_path / "out"))
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
        return path

    return write
