"""Exported rows: what other trainers read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from compact_distill.config.models import TextConfig
from compact_distill.data import ExportCounts, export_instances
from compact_distill.errors import DataError
from compact_distill.records import Instance, Rationale

INSTANCES = [
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
    counts = export_instances(INSTANCES, tmp_path / "new" / "sft.jsonl")
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
    export_instances(INSTANCES[:1], tmp_path / "chat.jsonl", format="messages", text=text)
    assert rows(tmp_path / "chat.jsonl")[0]["messages"] == [
        {"role": "user", "content": "How many?\u2028Tell me."},
        {"role": "assistant", "content": "6 * 3 = 18\n#### $18"},
    ]


@pytest.mark.parametrize("format", ["prompt_completion", "messages"])
def test_datasets_reads_an_exported_file(tmp_path: Path, format: str) -> None:
    from datasets import Dataset

    export_instances(INSTANCES, tmp_path / "sft.jsonl", format=format)  # type: ignore[arg-type]
    dataset = Dataset.from_json(str(tmp_path / "sft.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert dataset["id"][:] == ["a", "a", "b", "b"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    path.write_text("before")

    def torn() -> Iterator[Instance]:
        yield INSTANCES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_instances(torn(), path)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["sft.jsonl"]


def test_an_unknown_format_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="format must be prompt_completion or messages, got 'alpaca'"):
        export_instances(INSTANCES, tmp_path / "sft.jsonl", format="alpaca")  # type: ignore[arg-type]
    assert not (tmp_path / "sft.jsonl").exists()
