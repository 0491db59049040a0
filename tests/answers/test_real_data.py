"""Extraction and comparison on real texts."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from compact_distill.answers import Verifier, compare_answers, extract_answer, read_rationale, split_answer
from compact_distill.answers.numbers import parse_number
from compact_distill.records import AnswerFrom, RationaleStatus, Verdict


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
        verdicts = pool.verify_many((read_rationale(text, gold).answer, gold) for text, gold, _ in labelled)
    disagree = [
        (text[-80:], gold, verdict)
        for (text, gold, is_correct), verdict in zip(labelled, verdicts, strict=True)
        if (verdict is Verdict.CORRECT) != is_correct
    ]
    assert len(labelled) == 4000
    assert disagree == []
    # Eight texts were cut off before their answer; one ends in the bare number of a cut-off sentence.
    assert verdicts.count(Verdict.UNPARSED) == 10


SIX_TEACHERS = [
    "asdiv_six_teachers_train",
    "asdiv_six_teachers_tune",
    "asdiv_six_teachers_test",
    "gsm8k_six_teachers",
    "strategyqa_six_teachers",
]


@pytest.mark.parametrize("name", SIX_TEACHERS)
def test_answers_of_six_real_teachers_agree_with_their_labels(data_folder: Path, name: str) -> None:
    rows, agree, unparsed, inferred, none = (Counter[str]() for _ in range(5))
    for row in _rows(data_folder / f"{name}.jsonl"):
        for rationale in row["rationales"]:
            teacher = rationale["teacher"]
            found = read_rationale(rationale["text"], row["answer"])
            rows[teacher] += 1
            agree[teacher] += (compare_answers(found.answer, row["answer"]) is Verdict.CORRECT) == rationale[
                "is_correct"
            ]
            unparsed[teacher] += found.status is RationaleStatus.UNPARSED
            none[teacher] += found.status is RationaleStatus.NO_ANSWER
            inferred[teacher] += found.source is AnswerFrom.INFERRED
    assert len(rows) == 6
    assert all(agree[teacher] >= 0.985 * count for teacher, count in rows.items()), agree
    assert inferred["gpt-4"] > 0.15 * rows["gpt-4"]
    assert all(unparsed[teacher] <= 0.03 * count for teacher, count in rows.items()), unparsed
    assert all(none[teacher] <= (0.3 if "strategy" in name else 0.03) * count for teacher, count in rows.items()), none


def test_what_strategyqa_leaves_unparsed_says_neither_yes_nor_no(data_folder: Path) -> None:
    # "There is no definitive answer", "Thus, the dwarves are not real": 9.6 % of the texts, as their labels have it.
    left, labelled_correct = [], 0
    for row in _rows(data_folder / "strategyqa_six_teachers.jsonl"):
        for rationale in row["rationales"]:
            if read_rationale(rationale["text"], row["answer"]).answer is None:
                left.append(rationale["text"])
                labelled_correct += rationale["is_correct"]
    assert len(left) < 0.1 * 12_000
    assert labelled_correct < 0.03 * len(left)  # the label takes "not applicable" for a no


@pytest.mark.parametrize("name", ["asdiv_six_teachers_train", "gsm8k_six_teachers", "strategyqa_six_teachers"])
def test_a_target_states_the_answer_once_where_the_text_ends_with_its_statement(data_folder: Path, name: str) -> None:
    texts = [r["text"] for row in _rows(data_folder / f"{name}.jsonl") for r in row["rationales"]]
    ending = [text for text in texts if re.search(r"[.!?] (?:So t|T)he answer is (?!not )[^.]*\.\Z", text)]
    assert len(ending) > 0.7 * len(texts)
    twice = [text[-80:] for text in ending if split_answer(text)[0] == text.strip()]
    assert len(twice) < 0.001 * len(ending), twice  # such as "The answer is that it depends."


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


def test_no_two_different_golds_of_math500_are_called_equal(data_folder: Path) -> None:
    golds = sorted({row["answer"] for row in _rows(data_folder / "math500.jsonl")})
    draw = random.Random(12)
    pairs = [tuple(draw.sample(golds, 2)) for _ in range(885)]
    with Verifier(workers=1) as pool:
        verdicts = pool.verify_many(pairs)
    # Golds that are the same number: written with a unit, a sign of currency, or as a fraction.
    equal = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is Verdict.CORRECT]
    assert [pair for pair in equal if len({_value(gold) for gold in pair}) > 1] == []


def _value(gold: str) -> object:
    return parse_number(gold) or gold
