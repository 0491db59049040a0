"""Extraction and comparison on real texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compact_distill.answers import Verifier, compare_answers, extract_answer, split_answer
from compact_distill.records import Verdict


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_verdicts_agree_with_the_labels_of_four_real_teachers(data_folder: Path) -> None:
    labelled = [
        (rationale["text"], row["answer"], rationale["is_correct"])
        for row in _rows(data_folder / "gsm8k_four_teachers.jsonl")
        for rationale in row["rationales"]
    ]
    with Verifier(workers=1) as pool:
        verdicts = pool.verify_many((extract_answer(text), gold) for text, gold, _ in labelled)
    disagree = [
        (text[-80:], gold, verdict)
        for (text, gold, is_correct), verdict in zip(labelled, verdicts, strict=True)
        if (verdict is Verdict.CORRECT) != is_correct
    ]
    assert len(labelled) == 4000
    assert disagree == []
    # Eight texts were cut off before their answer; one ends in the bare number of a cut-off sentence.
    assert verdicts.count(Verdict.UNPARSED) == 10


def test_the_statement_goes_from_every_rationale_that_ends_with_one(data_folder: Path) -> None:
    for row in _rows(data_folder / "gsm8k_four_teachers.jsonl"):
        for rationale in row["rationales"]:
            reasoning, answer = split_answer(rationale["text"])
            head, _, last = rationale["text"].strip().rpartition("\n")
            if last.startswith("A: "):
                assert (reasoning, answer) == (head.strip(), last[3:])
            else:
                assert (reasoning, answer) == (rationale["text"].strip(), None)


def test_boxed_answers_of_math500_are_their_gold_answers(data_folder: Path) -> None:
    rows = _rows(data_folder / "math500.jsonl")
    with Verifier(workers=1) as pool:
        verdicts = pool.verify_many((extract_answer(row["solution"]), row["answer"]) for row in rows)
    assert verdicts == [Verdict.CORRECT] * 500


def test_the_gold_answer_of_every_benchmark_is_correct_against_itself(data_folder: Path) -> None:
    for name in ("gsm8k_test", "svamp", "csqa_dev", "strategyqa"):
        for row in _rows(data_folder / f"{name}.jsonl"):
            stated = extract_answer(f"We think.\nSo the answer is {row['answer']}.")
            assert compare_answers(stated, row["answer"]) is Verdict.CORRECT, (name, row["id"])
