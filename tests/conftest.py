"""What all tests share: where the real data is, and quiet libraries."""

from __future__ import annotations

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
