"""Teachers, problems and rows for the tests of the pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compact_distill.config.teachers import GenerationConfig, TeacherConfig
from compact_distill.records import Problem, Verdict
from compact_distill.teachers.pool import generate
from compact_distill.teachers.store import RowStatus, StoredRow, StoreReader, text_digest
from compact_distill.teachers.worker import Counters


@pytest.fixture
def row() -> Callable[..., StoredRow]:
    """A row of the store; name what matters."""

    def make(**given: Any) -> StoredRow:
        fields: dict[str, Any] = {
            "id": "p0",
            "teacher": "t",
            "sample": 0,
            "request": "0" * 16,
            "status": RowStatus.OK,
            "verdict": Verdict.CORRECT,
            "text": "2 + 2 = 4\nThe answer is 4.",
            "reasoning": "",
            "answer": "4",
            "gold": "4",
            "finish_reason": "stop",
            "prompt_tokens": 12,
            "completion_tokens": 7,
            "latency": 0.2,
            "cost": None,
            "model": "m",
            "time": "2026-01-01T00:00:00.000+00:00",
        }
        fields.update(given)
        fields.setdefault("digest", text_digest(fields["reasoning"], fields["text"]))
        return StoredRow(**fields)

    return make


@pytest.fixture
def problems() -> Callable[[int], list[Problem]]:
    """So many problems with the answer 4, p0 and on; the question names the problem."""
    return lambda count: [Problem(f"p{i}", f"What is 2 + 2, in problem p{i}?", "4") for i in range(count)]


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., tuple[Counters, ...]]:
    """Run the pool on the stores in tmp_path/"stores"; no waiting between retries worth the name."""

    def run(
        teachers: TeacherConfig | list[TeacherConfig], asked: list[Problem], **generation: Any
    ) -> tuple[Counters, ...]:
        settings = GenerationConfig(**{"max_retries": 1, "patience": 0.0, **generation})
        listed = teachers if isinstance(teachers, list) else [teachers]
        return generate(listed, settings, asked, tmp_path / "stores")

    return run


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., list[StoredRow]]:
    """The rows of a teacher's store."""
    return lambda teacher="t": list(StoreReader(tmp_path / "stores", teacher).rows())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait milliseconds instead of seconds."""
    monkeypatch.setattr("compact_distill.teachers.ask.FIRST_DELAY", 0.01)
    monkeypatch.setattr("compact_distill.teachers.ask._SPREAD", 0.0)


def teacher(url: str, **given: Any) -> TeacherConfig:
    """A teacher at a server."""
    return TeacherConfig(**{"name": "t", "model": "m", "base_url": url, **given})
