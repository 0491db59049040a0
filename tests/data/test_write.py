"""The training data as it was used, and as other trainers read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import models
from compact_distill.answers import Verifier
from compact_distill.config.models import TextConfig
from compact_distill.data import ExportCounts, export_instances
from compact_distill.data.write import ProblemSize, optimizer_steps, preview, used_rows
from compact_distill.errors import DataError
from compact_distill.method.encode import Encoder
from compact_distill.records import AnswerFrom, Instance, Rationale, RationaleStatus, Verdict

TEXTS = ["So 7.\nThe answer is 7.", "no statement", "long " * 200 + "\nThe answer is 8.", ""]


def used(*rationales):
    encoder = Encoder(models.byte_level_tokenizer(), max_length=100)
    instance = Instance("p", "Ann?", "7", rationales)
    with Verifier(workers=1) as verifier:
        encoded = encoder(instance)
        (row,) = used_rows([instance], [encoded], verifier)
    assert json.loads(json.dumps(row)) == row  # plain JSON
    return row, encoded


def test_a_line_tells_verdict_status_and_length_of_every_rationale():
    row, problem = used(*(Rationale("t", text, sample=k) for k, text in enumerate(TEXTS)))
    assert row["prompt_tokens"] == len(problem.prompt)
    assert [r["status"] for r in row["rationales"]] == ["ok", "unparsed", "over_length", "missing"]
    assert [r["tokens"] for r in row["rationales"]] == [len(problem.branches[0]), None, None, None]
    assert [r["answer"] for r in row["rationales"]] == ["7", None, "8", None]
    assert [r["verdict"] for r in row["rationales"]] == ["correct", "unparsed", "wrong", None]
    assert [r["sample"] for r in row["rationales"]] == [0, 1, 2, 3]
    assert [r["text"] for r in row["rationales"]] == TEXTS


def test_answers_that_were_inferred_are_counted_and_shown_apart():
    row, problem = used(Rationale("t", TEXTS[0]), Rationale("u", "So Ann has 7 coins."), Rationale("v", "Ann."))
    assert [r["answer_from"] for r in row["rationales"]] == ["stated", "inferred", None]
    assert [r["status"] for r in row["rationales"]] == ["ok", "ok", "no_answer"]
    train = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_train_epochs": 1}
    lengths = tuple(None if branch is None else len(branch) for branch in problem.branches)
    size = ProblemSize(problem.teachers, problem.statuses, problem.answers_from, len(problem.prompt), lengths)
    shown = preview([size], train, 100)
    assert [teacher.inferred for teacher in shown.teachers] == [0, 1, 0]
    table = [line.split() for line in str(shown).splitlines()]
    assert table[1][:5] == ["teacher", "rationales", "used", "inferred", "no_answer"]
    assert [line[:5] for line in table[2:5]] == [
        ["t", "1", "1", "0", "0"],
        ["u", "1", "1", "1", "0"],
        ["v", "1", "0", "0", "1"],
    ]
    assert (
        str(shown).splitlines()[5].startswith("no_answer: ended by themselves without a word that could be the answer")
    )
    answered = ProblemSize(("t",), (RationaleStatus.OK,), (AnswerFrom.STATED,), 5, (7,))
    assert "no_answer" not in str(preview([answered], train, 100))


def test_what_the_data_says_in_numbers_is_kept_and_nothing_else_of_it():
    given = {"mqm": 10, "is_correct": True, "rater": "x", "broken": float("nan")}
    row, _ = used(Rationale("t", TEXTS[0], extra=given), Rationale("u", TEXTS[0]))
    assert row["rationales"][0]["numbers"] == {"mqm": 10.0}
    assert "numbers" not in row["rationales"][1]


def test_a_verdict_that_was_given_stays():
    row, _ = used(Rationale("t", TEXTS[0], verdict=Verdict.WRONG), Rationale("u", TEXTS[0], answer="9"))
    assert [r["verdict"] for r in row["rationales"]] == ["wrong", "wrong"]


@pytest.mark.parametrize(
    ("problems", "settings", "steps"),
    [(200, {}, 250), (201, {}, 255), (3, {}, 5), (201, {"max_steps": 7}, 7), (9, {"num_train_epochs": 0.5}, 2)],
)
def test_optimizer_steps_are_counted_as_transformers_does(problems, settings, steps):
    train = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "num_train_epochs": 5, **settings}
    assert optimizer_steps(problems, train) == steps
    assert optimizer_steps(problems * 4, train, ranks=4) == steps


def test_problems_that_the_weight_rule_skips_are_counted_and_not_read():
    train = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "num_train_epochs": 2}
    size = ProblemSize(("t",), (RationaleStatus.OK,), (AnswerFrom.INFERRED,), 5, (7,))
    shown = preview([size, replace(size, skipped=True), replace(size, skipped=True)], train, 100)
    assert (shown.problems, shown.skipped, shown.steps) == (1, 2, 2)
    assert (shown.tokens_per_epoch, shown.teachers[0].inferred) == (12, 1)
    page = str(shown).splitlines()
    assert page[0] == "problems: 1, 2 skipped by the weight rule: no rationale of theirs may get weight"
    assert page[2].split()[:4] == ["t", "3", "1", "1"]
    with pytest.raises(DataError, match="the weight rule leaves no rationale to train on: none of 1 problems"):
        preview([replace(size, skipped=True)], train, 100)


EXPORTED = [
    Instance(
        "a",
        "How many?\u2028Tell me.",
        "18",
        (
            Rationale("terse", "6 * 3 = 18\nA: $18"),
            Rationale("wordy", "Well. So the answer is 17."),
            Rationale("broken", ""),
            Rationale("vague", "A few."),
        ),
    ),
    Instance("b", "{answer}?", "2", (Rationale("terse", "#### 2"), Rationale("vague", "Some.", answer="2", sample=1))),
]


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_prompt_and_completion_hold_what_the_student_is_trained_on(tmp_path: Path) -> None:
    counts = export_instances(EXPORTED, tmp_path / "new" / "sft.jsonl")
    assert counts == ExportCounts(written=4, missing=1, unparsed=1)
    prompt = "Question: How many?\u2028Tell me.\nAnswer:"
    assert rows(tmp_path / "new" / "sft.jsonl") == [
        {
            "prompt": prompt,
            "completion": " 6 * 3 = 18\nThe answer is $18.",
            "id": "a",
            "teacher": "terse",
            "sample": 0,
        },
        {
            "prompt": prompt,
            "completion": " Well.\nThe answer is 17.",
            "id": "a",
            "teacher": "wordy",
            "sample": 0,
        },
        {
            "prompt": "Question: {answer}?\nAnswer:",
            "completion": "\nThe answer is 2.",
            "id": "b",
            "teacher": "terse",
            "sample": 0,
        },
        {
            "prompt": "Question: {answer}?\nAnswer:",
            "completion": " Some.\nThe answer is 2.",
            "id": "b",
            "teacher": "vague",
            "sample": 1,
        },
    ]


def test_messages_have_no_templates_of_ours_around_the_question(tmp_path: Path) -> None:
    text = TextConfig(answer_template="#### {answer}")
    export_instances(EXPORTED[:1], tmp_path / "chat.jsonl", format="messages", text=text)
    assert rows(tmp_path / "chat.jsonl")[0]["messages"] == [
        {"role": "user", "content": "How many?\u2028Tell me."},
        {"role": "assistant", "content": "6 * 3 = 18\n#### $18"},
    ]


@pytest.mark.parametrize("format", ["prompt_completion", "messages"])
def test_datasets_reads_an_exported_file(tmp_path: Path, format: str) -> None:
    from datasets import Dataset

    export_instances(EXPORTED, tmp_path / "sft.jsonl", format=format)  # type: ignore[arg-type]
    dataset = Dataset.from_json(str(tmp_path / "sft.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert dataset["id"][:] == ["a", "a", "b", "b"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text("before")

    def torn() -> Iterator[Instance]:
        yield EXPORTED[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_instances(torn(), path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["sft.jsonl"]


def test_an_unknown_format_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="format must be prompt_completion or messages, got 'alpaca'"):
        export_instances(EXPORTED, tmp_path / "sft.jsonl", format="alpaca")  # type: ignore[arg-type]
    assert not (tmp_path / "sft.jsonl").exists()
