"""What the YAML files of `lm_eval_tasks/` call: our own task definitions' rows and scores, inside lm-eval.

lm-eval generates; prompt, parser and comparison are those of `compact eval`. One thing lm-eval does not tell: whether
the token limit cut a text. A cut text therefore counts like one that ended by itself, and its last number may be
taken for an answer where `compact eval` counts it as unparsed.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact_distill.answers import Verifier, find_answer
from compact_distill.evaluation.task import load_task
from compact_distill.evaluation.task_rows import read_task
from compact_distill.records import Verdict

if TYPE_CHECKING:
    from datasets import Dataset

TASKS = Path(__file__).with_name("lm_eval_tasks")
"""The folder of task files, for lm-eval's `--include_path`."""


def _dataset(name: str, **metadata: Any) -> dict[str, Dataset]:
    """lm-eval's `custom_dataset`: a task's rows as `{task, id, prompt, gold, choices ...}`, in the split `test`.

    Other data than the hub's comes by the command line: `--metadata '{"gsm8k": "gsm8k_test.jsonl"}'`.
    """
    from datasets import Dataset

    task = load_task(f"{name}={metadata[name]}" if name in metadata else name)
    rows = [
        # Choices as JSON: a dataset's column holds objects of one kind only.
        {
            "task": name,
            "id": row.id,
            "prompt": row.prompt,
            "gold": row.gold,
            "choices": json.dumps(dict(row.choices)),
            "texts": list(row.choices.values()),
            "target": list(row.choices).index(row.gold) if row.choices else None,
        }
        for row in read_task(task).rows
    ]
    return {"test": Dataset.from_list(rows)}


gsm8k, svamp, math500, csqa, strategyqa = (
    partial(_dataset, name) for name in ("gsm8k", "svamp", "math500", "csqa", "strategyqa")
)
csqa_likelihood, strategyqa_likelihood = (
    partial(_dataset, name) for name in ("csqa_likelihood", "strategyqa_likelihood")
)


def score(row: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's `process_results`: 1 for a correct answer, and 1 where none was found."""
    answer, _ = find_answer(results[0], True, load_task(row["task"]).parser, json.loads(row["choices"]))
    verdict = _verifier().verify(answer, row["gold"])
    return {"accuracy": float(verdict == Verdict.CORRECT), "unparsed": float(verdict == Verdict.UNPARSED)}


@cache
def _verifier() -> Verifier:
    verifier = Verifier()
    atexit.register(verifier.close)
    return verifier
