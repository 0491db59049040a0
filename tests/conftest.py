"""What all tests share: where the real data is, and quiet libraries."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network shall fail at once


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data: $COMPACT_DATA, else shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("COMPACT_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"real data not found: set COMPACT_DATA to its folder (looked at {folder})")
    return folder


OLD, NEW = "a" * 40, "b" * 40  # commits of the hub below


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache, offline, that holds two commits of `org/tiny`; the newest one is set by `move`."""
    import torch

    import models
    from compact_distill.students import identity
    from compact_distill.students.load import pin

    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    repository = cache / "models--org--tiny"
    for seed, commit in enumerate((OLD, NEW)):
        model = models.tiny_model("qwen2", layers=1, dtype=torch.float32, seed=seed)
        models.save_student(repository / "snapshots" / commit, model, models.byte_level_tokenizer())
    (repository / "refs").mkdir()

    class Hub:
        def move(self, commit: str) -> None:
            (repository / "refs" / "main").write_text(commit)
            identity._commit.cache_clear()

    made = Hub()
    made.move(OLD)
    yield made
    pin("org/tiny", None)
    identity._commit.cache_clear()


def _lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run of a tiny student, two teachers, one benchmark to learn and one to retain. Nobody changes it."""
    import torch

    from compact_distill import pipeline
    from compact_distill.config.file import config_from
    from models import byte_level_tokenizer, save_student, tiny_model

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
