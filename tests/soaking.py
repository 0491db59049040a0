"""A small pipeline that can be killed anywhere: what the soak test starts in processes of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
from pathlib import Path
from typing import Any

import torch

# Processes are forked from one that has imported all this already: a start takes a tenth of a second, not ten.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["soaking", "compact_distill.pipeline", "compact_distill.cli", "models"])

PROBLEMS, TEACHERS = 8, 2


def make_inputs(folder: Path) -> dict[str, Any]:
    """A student, problems, the file that stands for the teachers, and a benchmark; returns the run's settings."""
    from models import byte_level_tokenizer, save_student, tiny_model

    save_student(folder / "student", tiny_model("qwen2", layers=2, dtype=torch.float32, seed=1), byte_level_tokenizer())
    problems = [{"id": f"p{n}", "question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(PROBLEMS)]
    exam = [{"id": f"e{n}", "question": f"What is {n} + 20?", "answer": str(n + 20)} for n in range(3)]
    for name, rows in (("problems", problems), ("exam", exam)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for k in range(TEACHERS):
        texts = [f"We add{' one' * k}. So it is {p['answer']}.\nThe answer is {p['answer']}." for p in problems]
        said = [{"id": p["id"], "teacher": f"t{k}", "text": text} for p, text in zip(problems, texts, strict=True)]
        (folder / f"t{k}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    return {
        "student": str(folder / "student"),
        "problems": {"path": str(folder / "problems.jsonl")},
        "teachers": [
            {"name": f"t{k}", "backend": "jsonl", "path": str(folder / f"t{k}.jsonl")} for k in range(TEACHERS)
        ],
        "lora": {"r": 2},
        "train": {
            "learning_rate": 0.01,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 2,
            "save_steps": 3,
            "use_cpu": True,
        },
        "eval": {"learned": [str(folder / "exam.jsonl")], "max_new_tokens": 4, "drift_rows": 3},
    }


def run(settings: dict[str, Any], said: Path, verify: bool = False, largest: int | None = None) -> None:
    """`compact run`; what is said goes to the end of a file.

    No file may grow beyond `largest` bytes, as if the disk were full.
    """
    from compact_distill.cli import app

    torch.set_num_threads(1)
    config = said.with_suffix(".yaml")
    config.write_text(json.dumps(settings), encoding="utf-8")
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    app(["run", str(config), *(["--verify"] if verify else [])])


def start(settings: dict[str, Any], said: Path, verify: bool = False, largest: int | None = None) -> Any:
    """The same in a process of its own."""
    process = CONTEXT.Process(target=run, args=(settings, said, verify, largest))
    process.start()
    return process
