"""examples/recipes/loop.py is what the trainer does: the same losses and the same student, step by step."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from compact_distill import CompactConfig, CompactTrainer, CompatibilityConfig, Instance, Rationale
from models import byte_level_tokenizer, save_student, tiny_model

LOOP = Path(__file__).resolve().parents[2] / "examples" / "recipes" / "loop.py"


def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loop", LOOP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def instances(count: int = 7) -> list[Instance]:
    made = []
    for i in range(count):
        texts = [f"First {i} + 3. So {i + 3 + k}.\nThe answer is {i + 3 + k}." for k in range(3)]
        rationales = tuple(Rationale(f"t{k}", text) for k, text in enumerate(texts))
        made.append(Instance(f"p{i}", f"Ann has {i} apples and buys 3.", str(i + 3), rationales))
    return made


@pytest.mark.parametrize("weighting", ["compact", "random", {"gate": "compact"}], ids=str)
@pytest.mark.parametrize("max_tokens", [16384, 120])
def test_the_loop_gives_the_trainers_losses_and_student(tmp_path: Path, weighting: object, max_tokens: int) -> None:
    compatibility = CompatibilityConfig(estimator="probe", max_probes=4)
    looped, trained = tiny_model("qwen2", layers=2), tiny_model("qwen2", layers=2)
    settings = {"compatibility": compatibility, "weighting": weighting, "consistency": 0.3, "learning_rate": 1e-3}
    losses = list(
        recipe().train(looped, byte_level_tokenizer(), instances(), epochs=2, max_tokens=max_tokens, **settings)
    )
    arguments = CompactConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=2,
        train_sampling_strategy="sequential",
        optim="adamw_torch",
        max_tokens_per_pass=max_tokens,
        disable_tqdm=True,
        save_strategy="no",
        **settings,
    )
    trainer = CompactTrainer(trained, arguments, instances(), processing_class=byte_level_tokenizer())
    trainer.train()
    logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses == pytest.approx(logged, rel=1e-6)
    assert len(losses) == 4
    for name, parameter in looped.named_parameters():
        torch.testing.assert_close(parameter, dict(trained.named_parameters())[name], atol=1e-7, rtol=1e-6)


def test_the_loop_is_short_and_runs_as_a_command(tmp_path: Path) -> None:
    assert len(LOOP.read_text(encoding="utf-8").splitlines()) <= 150
    student = save_student(tmp_path / "student", tiny_model("qwen2", dtype=torch.float32), byte_level_tokenizer())
    with (tmp_path / "data.jsonl").open("w", encoding="utf-8") as file:
        for made in instances(2):
            rationales = [{"teacher": r.teacher, "text": r.text} for r in made.rationales]
            row = {"id": made.id, "question": made.question, "answer": made.answer, "rationales": rationales}
            file.write(json.dumps(row) + "\n")
    command = [sys.executable, str(LOOP), str(student), str(tmp_path / "data.jsonl"), str(tmp_path / "out")]
    done = subprocess.run([*command, "--epochs", "1"], capture_output=True, text=True, timeout=300, check=True)
    assert "step 1: loss" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()
