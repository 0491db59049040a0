"""Examine a student: ask every row of a task, keep each reply at once, find and verify the answers, count."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compact_distill.answers import Verifier, find_answer
from compact_distill.errors import RunError
from compact_distill.evaluation.result_files import (
    FORMAT,
    partial_path,
    read_result,
    result_path,
    rows_path,
    write_result,
)
from compact_distill.evaluation.statistics import share_of_rows
from compact_distill.evaluation.task import Task
from compact_distill.evaluation.task_rows import TaskRow, TaskRows
from compact_distill.evaluation.writers import Attempt, Reply, Writer
from compact_distill.records import Verdict
from compact_distill.runs.environment import versions
from compact_distill.runs.files import atomic_write, content_hash, cut_torn_line, fingerprint, json_line
from compact_distill.runs.progress import progress
from compact_distill.students.generate import Decoding


@dataclass(frozen=True, slots=True)
class Subject:
    """Which student is examined: its place among the results, its name, and what identifies its weights.

    `step` and `epoch` say how far it was trained; None where no run trained it.
    """

    label: str
    name: str
    hash: str
    step: int | None = None
    epoch: float | None = None


def evaluate_task(
    writer: Writer, subject: Subject, rows: TaskRows, folder: Path, *, role: str | None = None, seed: int = 42
) -> dict[str, Any]:
    """Examine a student on a task, unless that was done with the very same settings; go on where a run was stopped.

    Args:
        writer: the student.
        subject: what is said about it in the result.
        rows: the task's rows.
        folder: the student's results, such as RUN/eval/base; made where there is none.
        role: `learned` or `retained`; None where nobody said.
        seed: of sampling.

    Returns:
        The result, as it stands in its file.

    Raises:
        InputError: rows that this student cannot be asked.
        RunError: rows that got no reply; a later call asks only for those.
    """
    task = rows.task
    asked = Decoding(task.max_new_tokens, task.temperature, task.top_p)
    decoding = writer.decoding(asked)
    pinned = {
        "task": {**task.model_dump(mode="json", include={"name", "version", "prompt"}), "parser": list(task.parser)},
        "student": {"label": subject.label, "name": subject.name, "hash": subject.hash}
        | {"step": subject.step, "epoch": subject.epoch, **writer.settings()},
        "data": {
            "source": task.data.path or f"lab {task.data.lab}",
            "split": task.data.split if task.data.path else None,
            "limit": rows.limit,
            "rows": len(rows.rows),
            "seen_in_training": rows.seen_in_training,
            "hash": rows.hash,
        },
        "decoding": {**asdict(decoding), "stop": list(decoding.stop), "samples": task.samples, "seed": seed},
    }
    key = _key(pinned)
    found = _found(folder, task.name, key)
    if found is not None:
        if found["role"] != role:
            found["role"] = role
            write_result(result_path(folder, task.name), found)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    requests = _requests(rows.rows, task, seed)
    with _Partial(partial_path(folder, task.name), key) as partial:
        _ask(writer, requests, decoding, partial, f"eval {task.name}, {subject.label}")
        attempts = _judge(rows.rows, task, [partial.replies[i] for i in range(len(requests))])
    text = "".join(json_line(attempt) for attempt in attempts)
    document = {
        "format": FORMAT,
        "key": key,
        "role": role,
        **pinned,
        "result": _count(attempts, task),
        "rows_hash": hashlib.sha256(text.encode()).hexdigest(),
        "versions": versions(),
    }
    with atomic_write(rows_path(folder, task.name)) as file:
        file.write(text)
    write_result(result_path(folder, task.name), document)
    partial_path(folder, task.name).unlink()
    return document


def describe(document: Mapping[str, Any]) -> str:
    """One line of a result: accuracy with its interval, and what was not read or cut."""
    result = document["result"]
    parts = [
        f"{document['task']['name']}, {document['student']['label']}: {100 * result['accuracy']:.1f} % correct "
        f"({100 * result['low']:.1f} to {100 * result['high']:.1f}) of {result['rows']} rows"
    ]
    parts += [f"{result['samples']} samples each"] if result["samples"] > 1 else []
    verdicts = result["verdicts"]
    parts += [f"{verdicts[v]} {v}" for v in (Verdict.UNPARSED, Verdict.TIMED_OUT) if verdicts[v]]
    parts += [f"{result['truncated']} truncated"] if result["truncated"] else []
    left_out = document["data"]["seen_in_training"]
    parts += [f"{left_out} rows left out: the student was trained on them"] if left_out else []
    return ", ".join(parts)


def _key(pinned: Mapping[str, Any]) -> str:
    """Hash of all that decides the result: not the student's name and label, nor where the same data came from."""
    student = {k: v for k, v in pinned["student"].items() if k not in ("label", "name", "step", "epoch")}
    return fingerprint({**pinned, "student": student, "data": pinned["data"]["hash"]})


def _found(folder: Path, task: str, key: str) -> dict[str, Any] | None:
    """The finished result of the very same evaluation; one that is damaged or of other settings is done again."""
    try:
        document = read_result(result_path(folder, task))
    except RunError:
        return None
    rows = rows_path(folder, task)
    whole = rows.is_file() and document.get("rows_hash") == content_hash(rows)
    return document if whole and document.get("key") == key else None


def _requests(rows: Sequence[TaskRow], task: Task, seed: int) -> list[Attempt]:
    """One a row and sample, samples of a row together; each has its own seed, the same in every run."""
    requests = []
    for row in rows:
        for sample in range(task.samples):
            digest = hashlib.sha256(f"{seed}/{task.name}/{row.id}/{sample}".encode()).digest()
            requests.append(Attempt(row.id, sample, row.prompt, int.from_bytes(digest[:4], "big") & 0x7FFFFFFF))
    return requests


def _ask(writer: Writer, requests: Sequence[Attempt], decoding: Decoding, partial: _Partial, label: str) -> None:
    with progress(label, len(requests), len(partial.replies)) as shown:
        for index, reply in writer.write(requests, decoding, partial.replies.keys()):
            partial.append(index, reply)
            shown.advance()
    missing = len(requests) - len(partial.replies)
    if missing:
        raise RunError(f"{label}: {missing} of {len(requests)} rows got no reply; the same command asks for them again")


def _judge(rows: Sequence[TaskRow], task: Task, replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """One object an attempt, as the rows file holds it."""
    attempts: list[dict[str, Any]] = []
    for index, reply in enumerate(replies):
        row = rows[index // task.samples]
        answer, parsed_by = find_answer(reply.text, reply.finished, task.parser, row.choices)
        attempts.append(
            {
                "id": row.id,
                "sample": index % task.samples,
                "question": row.question,
                **({"choices": dict(row.choices)} if row.choices else {}),
                "gold": row.gold,
                "text": reply.text,
                "answer": answer,
                "parsed_by": parsed_by,
                "verdict": None,
                "finished": reply.finished,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.tokens,
            }
        )
    with Verifier() as verifier:
        verdicts = verifier.verify_many((attempt["answer"], attempt["gold"]) for attempt in attempts)
    for attempt, verdict in zip(attempts, verdicts, strict=True):
        attempt["verdict"] = str(verdict)
    return attempts


def _count(attempts: Sequence[Mapping[str, Any]], task: Task) -> dict[str, Any]:
    correct = [attempt["verdict"] == Verdict.CORRECT for attempt in attempts]
    shares = [sum(correct[i : i + task.samples]) / task.samples for i in range(0, len(correct), task.samples)]
    accuracy = share_of_rows(shares, task.samples)
    verdicts = Counter(attempt["verdict"] for attempt in attempts)
    finders = Counter(attempt["parsed_by"] for attempt in attempts if attempt["parsed_by"])
    tokens = [attempt["completion_tokens"] for attempt in attempts]
    return {
        "rows": len(shares),
        "samples": task.samples,
        "attempts": len(attempts),
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "verdicts": {str(verdict): verdicts[verdict] for verdict in Verdict},
        "truncated": sum(not attempt["finished"] for attempt in attempts),
        "parsed_by": {name: finders[name] for name in task.parser},
        "completion_tokens": sum(tokens) if None not in tokens else None,
    }


class _Partial:
    """Replies of an evaluation under way, one a line below a first line with its key; of another key, they go."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.replies: dict[int, Reply] = {}
        cut_torn_line(path)
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        if lines and lines[0] + "\n" == json_line({"key": key}):
            for line in lines[1:]:
                fields = json.loads(line)
                index = fields.pop("request")
                self.replies[index] = Reply(**fields)
            self._file = path.open("a", encoding="utf-8")
        else:
            self._file = path.open("w", encoding="utf-8")
            self._file.write(json_line({"key": key}))
            self._file.flush()

    def append(self, index: int, reply: Reply) -> None:
        """Keep a reply; it is in the file when this returns (in the system's cache, not yet on disk)."""
        self.replies[index] = reply
        self._file.write(json_line({"request": index, **asdict(reply)}))
        self._file.flush()

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
