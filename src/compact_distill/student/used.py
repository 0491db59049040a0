"""The training data as it was used: each rationale with its verdict, whether it took part, and its length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from compact_distill.answers import split_answer
from compact_distill.records import Instance
from compact_distill.student.tokens import Encoder


def used_rows(instances: Iterable[Instance], encoder: Encoder) -> Iterator[dict[str, Any]]:
    """Yield a problem's line of `data.jsonl` (docs/report.md), in the order of the input; lengths in tokens."""
    for instance in instances:
        problem = encoder(instance)
        yield {
            "id": instance.id,
            "question": instance.question,
            "answer": instance.answer,
            "prompt_tokens": len(problem.prompt),
            "rationales": [
                {
                    "teacher": rationale.teacher,
                    "sample": rationale.sample,
                    "text": rationale.text,
                    "answer": rationale.answer or split_answer(rationale.text)[1],
                    "verdict": rationale.verdict,
                    "status": status,
                    "tokens": None if branch is None else len(branch),
                }
                for rationale, branch, status in zip(
                    instance.rationales, problem.branches, problem.statuses, strict=True
                )
            ],
        }
