"""Fixtures of the command line: a tiny student, three problems, a run, and a way to call `compact`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from compact_distill.cli import app
from models import byte_level_tokenizer, save_student, tiny_model


@pytest.fixture
def compact():
    def call(*arguments: object, code: int = 0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return call


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    model = tiny_model("llama", layers=1, dtype=torch.float32)
    return save_student(tmp_path_factory.mktemp("students") / "tiny", model, byte_level_tokenizer())


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [
        {
            "id": f"p{n}",
            "question": "1 + 1?",
            "answer": "2",
            "rationales": [{"teacher": "a", "text": "So 2.\nThe answer is 2."}, {"teacher": "b", "text": None}],
        }
        for n in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(student, data, tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    settings = f"student: {student}\nrationales: {data}\noutput: {tmp_path / 'run'}\n"
    path.write_text(settings + "train: {max_steps: 2, use_cpu: true}\n")
    return path
