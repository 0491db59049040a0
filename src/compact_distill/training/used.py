"""The training data as it was used: each rationale with its verdict, whether it took part, and its length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from compact_distill.answers import Verifier, split_answer
from compact_distill.method.encode import Encoder
from compact_distill.records import Instance


def used_rows(instances: Iterable[Instance], encoder: Encoder, verifier: Verifier) -> Iterator[dict[str, Any]]:
    """Yield a problem's line of `data.jsonl` (docs/report.md), in the order of the input; lengths in tokens.

    A rationale that comes without a verdict gets the verifier's; one without any text has none.
    """
    for instance in instances:
        problem = encoder(instance)
        answers = [r.answer or split_answer(r.text)[1] for r in instance.rationales]
        verdicts = verifier.verify_many((answer, instance.answer) for answer in answers)
        rows = zip(instance.rationales, answers, verdicts, problem.branches, problem.statuses, strict=True)
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
                    "answer": answer,
                    "verdict": rationale.verdict or (verdict if rationale.text.strip() else None),
                    "status": status,
                    "tokens": None if branch is None else len(branch),
                }
                for rationale, answer, verdict, branch, status in rows
            ],
        }
