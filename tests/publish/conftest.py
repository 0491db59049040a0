"""A finished run of a tiny student, with two teachers, one benchmark to learn and one to retain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compact_distill import pipeline
from compact_distill.config.file import config_from
from models import byte_level_tokenizer, save_student, tiny_model


def _lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The run's folder. Nobody changes it."""
    folder = tmp_path_factory.mktemp("published")
    save_student(folder / "student", tiny_model("qwen2", layers=2, dtype=torch.float32), byte_level_tokenizer())
    texts = ("So {0} + 1 = {1}.\nThe answer is {1}.", "<b>So</b> {0} + 1 = {0}.\nThe answer is {0}.")
    rows = [
        {
            "id": f"p{n}",
            "question": f"What is {n} + 1?",
            "answer": str(n + 1),
            "rationales": [
                {"teacher": name, "text": text.format(n, n + 1)}
                for name, text in zip(("right", "wr|ong"), texts, strict=True)
            ],
        }
        for n in range(6)
    ]
    exam = [{"id": f"e{n}", "question": f"What is {n} + 2?", "answer": str(n + 2)} for n in range(4)]
    settings = {
        "student": str(folder / "student"),
        "rationales": _lines(folder / "data.jsonl", rows),
        "output": str(folder / "run"),
        "lora": {"r": 2},
        "train": {"max_steps": 3, "use_cpu": True, "learning_rate": 0.05},
        "eval": {
            "learned": [_lines(folder / "sums.jsonl", exam)],
            "retained": [_lines(folder / "kept.jsonl", exam)],
            "max_new_tokens": 4,
        },
        "card": {"license": "apache-2.0", "teacher_licences": {"right": "MIT"}, "data": "Made <up>."},
    }
    pipeline.run(config_from(settings))
    return folder / "run"
