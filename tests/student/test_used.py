"""The training data as it was used."""

from __future__ import annotations

import json

import models
from compact_distill.records import Instance, Rationale, Verdict
from compact_distill.student.tokens import Encoder
from compact_distill.student.used import used_rows


def test_a_line_tells_verdict_status_and_length_of_every_rationale():
    texts = ["So 7.\nThe answer is 7.", "no statement", "long " * 200 + "\nThe answer is 7.", ""]
    rationales = tuple(Rationale("t", text, sample=k, verdict=Verdict.CORRECT) for k, text in enumerate(texts))
    encoder = Encoder(models.byte_level_tokenizer(), max_length=100)
    instance = Instance("p", "Ann?", "7", rationales)
    (row,) = used_rows([instance], encoder)
    assert json.loads(json.dumps(row)) == row  # plain JSON
    problem = encoder(instance)
    assert row["prompt_tokens"] == len(problem.prompt)
    assert [r["status"] for r in row["rationales"]] == ["ok", "unparsed", "over_length", "missing"]
    assert [r["tokens"] for r in row["rationales"]] == [len(problem.branches[0]), None, None, None]
    assert [r["answer"] for r in row["rationales"]] == ["7", None, "7", None]
    assert [r["sample"] for r in row["rationales"]] == [0, 1, 2, 3]
    assert row["rationales"][0]["text"] == texts[0]
    assert row["rationales"][0]["verdict"] == "correct"
