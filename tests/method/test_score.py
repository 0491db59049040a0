"""`score`, from texts and a student folder to rows, against the reference that reads the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import reference
from compact_distill.cli import app
from compact_distill.config.models import PRESETS, CompatibilityConfig, TextConfig
from compact_distill.method.score import score
from compact_distill.records import Instance, Rationale, RationaleStatus, ScoreRow
from models import byte_level_tokenizer, save_student, sentencepiece_tokenizer, tiny_model

# Each rationale as its teacher wrote it, and what it splits into: reasoning and the teacher's own answer.
TEXTS: list[list[tuple[str, tuple[str, str] | None]]] = [
    [
        ("First 7 + 5 = 12. So we get 12.\nThe answer is 12.", ("First 7 + 5 = 12. So we get 12.", "12")),
        ("7 - 5 = 2.\n\n#### 2", ("7 - 5 = 2.", "2")),
        ("", None),
        ("Wait, it is 12, hmm.\nBut check: \\boxed{12}", ("Wait, it is 12, hmm.\nBut check: \\boxed{12}", "12")),
    ],
    [
        ("Nobody can say.", None),
        ("The answer is 36.", ("", "36")),
    ],
    [("She sells 18 eggs for 2 dollars each.\nA: $36", ("She sells 18 eggs for 2 dollars each.", "$36"))],
]
GOLD = ["12", "36", "1,250"]
QUESTIONS = ["Ann has 7 apples and buys 5 more {now}.", "Why?", "x"]


def instances() -> list[Instance]:
    return [
        Instance(f"p{i}", QUESTIONS[i], GOLD[i], tuple(Rationale(f"t{k}", text) for k, (text, _) in enumerate(texts)))
        for i, texts in enumerate(TEXTS)
    ]


def encoded(tokenizer: Any, settings: reference.Settings) -> list[reference.Encoded]:
    return [
        reference.encode(tokenizer, QUESTIONS[i], GOLD[i], [split for _, split in texts], settings)
        for i, texts in enumerate(TEXTS)
    ]


def expected_rows(model: Any, tokenizer: Any, settings: reference.Settings) -> list[reference.Result]:
    with torch.no_grad():
        return [reference.evaluate(model, problem, settings) for problem in encoded(tokenizer, settings)]


def assert_rows(rows: list[dict[str, Any]], expected: list[reference.Result], tolerance: float) -> None:
    assert [row["id"] for row in rows] == ["p0", "p1", "p2"]
    for row, result in zip(rows, expected, strict=True):
        for name in ("consensus", "adaptability", "difficulty"):
            theirs = getattr(result, name).tolist()
            assert [value is None for value in row[name]] == [value != value for value in theirs]
            mine = [float("nan") if value is None else value for value in row[name]]
            assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance, nan_ok=True)
        assert row["weights"] == pytest.approx(result.weights.tolist(), abs=tolerance)


def as_dict(row: ScoreRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("id", "consensus", "adaptability", "difficulty", "weights")}


TOKENIZERS = {
    "byte_level": byte_level_tokenizer,
    "chat": lambda: byte_level_tokenizer(chat=True),
    "sentencepiece": sentencepiece_tokenizer,
    "sentencepiece_with_eos": lambda: sentencepiece_tokenizer(append_eos=True),
}


@pytest.mark.parametrize("estimator", ["lens", "probe"])
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_rows_of_texts_are_the_reference(architecture: str, name: str, estimator: str) -> None:
    tokenizer = TOKENIZERS[name]()
    settings = reference.Settings(
        estimator=estimator,
        max_probes=4,
        answer_template="#### {answer}!",
        prompt_template="Q: {question} A:",
        thinking_expressions=(r"she \w+", "7"),
    )
    model = tiny_model(architecture)
    expected = expected_rows(model, tokenizer, settings)
    longest = max(
        len(problem.prompt) + len(branch.completion)
        for problem in encoded(tokenizer, settings)
        for branch in problem.branches
        if branch is not None
    )
    config = CompatibilityConfig(
        **{**PRESETS["paper"]["compatibility"], "estimator": estimator},
        max_probes=4,
        thinking_expressions=settings.thinking_expressions,
    )
    text = TextConfig(prompt_template=settings.prompt_template, answer_template=settings.answer_template)
    for budget in (16384, longest):
        rows = list(score(model.train(), tokenizer, instances(), config, text, max_tokens_per_pass=budget))
        assert_rows([as_dict(row) for row in rows], expected, 1e-11)
        assert model.training, "score leaves the model's mode as it found it"
    ok, missing, none = RationaleStatus.OK, RationaleStatus.MISSING, RationaleStatus.NO_ANSWER
    assert [row.statuses for row in rows] == [(ok, ok, missing, ok), (none, ok), (ok,)]


@pytest.mark.parametrize("adapter", [False, True], ids=["model", "adapter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_command_scores_a_folder_in_single_precision(tmp_path: Path, adapter: bool, dtype: torch.dtype) -> None:
    tokenizer = byte_level_tokenizer()
    student = save_student(tmp_path / "student", tiny_model("qwen3", dtype=dtype), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    if adapter:
        student = tmp_path / "adapter"
        config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
        trained = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=dtype), config)
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        trained.save_pretrained(student)
        model = PeftModel.from_pretrained(model, student)
    data, out = tmp_path / "data.jsonl", tmp_path / "scores.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for instance in instances():
            rationales = [{"teacher": r.teacher, "text": r.text} for r in instance.rationales]
            row = {"id": instance.id, "question": instance.question, "answer": instance.answer}
            file.write(json.dumps({**row, "rationales": rationales}) + "\n")
    command = ["score", "--student", str(student), "--data", str(data), "--out", str(out), "--set", "preset=paper"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert_rows(rows, expected_rows(model.eval(), tokenizer, reference.Settings()), 1e-4)
    assert rows[0]["teachers"] == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize("weighting", ["compact", "random", {"best": "difficulty"}, {"fixed": {"t": 1.0}}])
def test_a_problem_without_rationales_has_a_row_without_weight_by_any_rule(weighting: Any) -> None:
    nobody = [Instance("none", "Why?", "36", ()), Instance("missing", "Why?", "36", (Rationale("t", ""),))]
    rows = list(score(tiny_model("llama", layers=1), byte_level_tokenizer(), nobody, weighting=weighting))
    assert [(row.id, row.weights, row.difficulty) for row in rows] == [("none", (), ()), ("missing", (0.0,), (None,))]
