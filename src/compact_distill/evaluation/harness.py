"""Examine a student: ask every row of a task, keep each reply at once, find and verify the answers, count."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from compact_distill.answers import Verifier, find_answer
from compact_distill.errors import InputError, RunError
from compact_distill.evaluation.likelihood import LikelihoodMeasure
from compact_distill.evaluation.result_files import (
    FORMAT,
    UNITS,
    Partial,
    as_plain,
    measures,
    partial_path,
    put_aside,
    result_path,
    rows_path,
    sealed,
    whole_result,
    write_result,
)
from compact_distill.evaluation.task import Task
from compact_distill.evaluation.task_rows import TaskRow, TaskRows
from compact_distill.evaluation.writers import Attempt, Reply, StudentWriter, Writer
from compact_distill.records import Verdict
from compact_distill.runs.environment import versions
from compact_distill.runs.files import atomic_write, fingerprint, json_line, seed_of
from compact_distill.runs.progress import progress, say
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
    measure = _measure(writer, rows, seed)
    pinned = {
        "task": _task_settings(task),
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
        "decoding": measure.decoding,
    }
    key = _key(pinned)
    found = _found(folder, task.name, key)
    if found is not None:
        if found["role"] != role:
            found["role"] = role
            write_result(result_path(folder, task.name), found)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    label = f"eval {task.name}, {subject.label}"
    identities = _identities(measure, pinned, key)
    with Partial(folder, task.name, identities, known=measure.independent) as partial:
        _ask(measure, partial, label)
        replies = [partial.found[index] for index in range(len(identities))]
    attempts = measure.judge(replies)
    if measure.independent:  # so that an evaluation of other rows or samples finds what was asked already
        for attempt, identity, reply in zip(attempts, identities, replies, strict=True):
            attempt["request"] = sealed(identity, reply)
    text = "".join(json_line(attempt) for attempt in attempts)
    document = {
        "format": FORMAT,
        "key": key,
        "role": role,
        **pinned,
        "result": measure.count(attempts),
        "rows_hash": hashlib.sha256(text.encode()).hexdigest(),
        "versions": versions(),
    }
    for path in (result_path(folder, task.name), rows_path(folder, task.name)):
        put_aside(path, "it is of other settings, or damaged")
    with atomic_write(rows_path(folder, task.name)) as file:
        file.write(text)
    write_result(result_path(folder, task.name), document)
    partial_path(folder, task.name).unlink()
    return document


def describe(document: Mapping[str, Any]) -> str:
    """One line of a result: its measures with their intervals, and what was not read or cut."""
    result, kind = document["result"], document["task"]["kind"]
    line = f"{document['task']['name']}, {document['student']['label']}: "
    if kind == "generate":
        line += f"{100 * result['accuracy']:.1f} % correct ({100 * result['low']:.1f} to {100 * result['high']:.1f})"
    else:
        line += ", ".join(_measured(name, value) for name, value in result["metrics"].items())
    parts = [f"{line} of {result['rows']} rows"]
    parts += [f"{result['samples']} samples each"] if result["samples"] > 1 else []
    verdicts = result["verdicts"]
    parts += [f"{verdicts[v]} {v}" for v in (Verdict.UNPARSED, Verdict.TIMED_OUT) if verdicts[v]]
    parts += [f"{result['truncated']} truncated"] if result["truncated"] else []
    left_out = document["data"]["seen_in_training"]
    parts += [f"{left_out} rows left out: the student was trained on them"] if left_out else []
    return ", ".join(parts)


def _measured(name: str, found: Mapping[str, float]) -> str:
    value, low, high = (found[part] for part in ("value", "low", "high"))
    if name in UNITS:
        return f"{value:.4f} {UNITS[name]} ({low:.4f} to {high:.4f})"
    return f"{name} {100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


class Measure(Protocol):
    """What a kind of task asks of a student, and how the replies count."""

    @property
    def requests(self) -> Sequence[Any]:
        """What the student is asked, one by one."""
        ...

    @property
    def decoding(self) -> dict[str, Any] | None:
        """How the student writes, as the result has it; None where it writes nothing."""
        ...

    @property
    def at_once(self) -> int:
        """How many requests are under way together: nobody knows how long all take before so many are done."""
        ...

    @property
    def independent(self) -> bool:
        """Whether a reply depends on its own request alone, and not on those beside it in a batch."""
        ...

    def ask(self, done: Collection[int]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """Yield (index of the request, what came back as plain JSON), as many as came back together."""
        ...

    def judge(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The objects of the rows file."""
        ...

    def count(self, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The `result` of the result file."""
        ...


def _measure(writer: Writer, rows: TaskRows, seed: int) -> Measure:
    if rows.task.kind == "generate":
        return Generation(writer, rows, seed)
    if not isinstance(writer, StudentWriter):
        raise InputError(
            f"task {rows.task.name} measures likelihoods (kind: {rows.task.kind}), which no server tells; evaluate the "
            "student in this process, by folder or hub name and without --base-url, or leave the task out"
        )
    return LikelihoodMeasure(writer, rows.task, rows.rows, seed)


def _task_settings(task: Task) -> dict[str, Any]:
    """The definition without what stands elsewhere in the result."""
    elsewhere = ("data", "max_new_tokens", "temperature", "top_p", "samples")
    return {"kind": task.kind, **{key: value for key, value in task.definition().items() if key not in elsewhere}}


def _key(pinned: Mapping[str, Any]) -> str:
    """Hash of all that decides the result: not the student's name and label, nor where the same data came from.

    Greedy decoding draws nothing, so its seed decides nothing.
    """
    student = {k: v for k, v in pinned["student"].items() if k not in ("label", "name", "step", "epoch")}
    decoding = pinned["decoding"]
    if decoding is not None and decoding["temperature"] == 0:
        decoding = {k: v for k, v in decoding.items() if k != "seed"}
    return fingerprint({**pinned, "student": student, "data": pinned["data"]["hash"], "decoding": decoding})


def _found(folder: Path, task: str, key: str) -> dict[str, Any] | None:
    """The finished result of the very same evaluation; one that is damaged or of other settings is done again."""
    try:
        document = whole_result(folder, task)
    except RunError as error:
        if result_path(folder, task).exists():
            say(f"{error}: done now")
        return None
    return document if document.get("key") == key else None


def _identities(measure: Measure, pinned: Mapping[str, Any], key: str) -> list[str]:
    """What each request is known by: all that decides its reply, which may be the whole evaluation."""
    if not measure.independent:
        return [f"{key[:16]}/{index}" for index in range(len(measure.requests))]
    student = {k: v for k, v in pinned["student"].items() if k not in ("label", "name", "step", "epoch")}
    decoding = {k: v for k, v in pinned["decoding"].items() if k not in ("samples", "seed")}  # the request has its own
    greedy = {"seed": 0} if decoding["temperature"] == 0 else {}
    return [fingerprint([student, decoding, asdict(request) | greedy])[:24] for request in measure.requests]


class Generation:
    """A task of kind `generate` for one student: it writes, and its answers are found and verified."""

    def __init__(self, writer: Writer, rows: TaskRows, seed: int) -> None:
        self.writer, self.rows, self.task, self.seed = writer, rows.rows, rows.task, seed
        self._attempts = to_attempts(rows.rows, rows.task, seed)
        asked = Decoding(self.task.max_new_tokens, self.task.temperature, self.task.top_p)
        self._decoding = writer.decoding(asked)

    @property
    def requests(self) -> Sequence[Any]:
        return self._attempts

    @property
    def decoding(self) -> dict[str, Any]:
        decoding = {**asdict(self._decoding), "stop": list(self._decoding.stop)}
        return {**decoding, "samples": self.task.samples, "seed": self.seed}

    @property
    def at_once(self) -> int:
        return self.writer.at_once

    @property
    def independent(self) -> bool:
        return self.writer.independent

    def ask(self, done: Collection[int]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        for replies in self.writer.write(self._attempts, self._decoding, done):
            yield [(index, asdict(reply)) for index, reply in replies]

    def judge(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        task = self.task
        attempts: list[dict[str, Any]] = []
        for index, fields in enumerate(found):
            row, reply = self.rows[index // task.samples], Reply(**fields)
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
        return [{**attempt, "verdict": str(verdict)} for attempt, verdict in zip(attempts, verdicts, strict=True)]

    def count(self, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        [accuracy] = measures("generate", attempts, self.task.samples).values()
        estimate = accuracy.estimate(self.seed)
        verdicts = Counter(attempt["verdict"] for attempt in attempts)
        finders = Counter(attempt["parsed_by"] for attempt in attempts if attempt["parsed_by"])
        tokens = [attempt["completion_tokens"] for attempt in attempts]
        return {
            "rows": len(self.rows),
            "samples": self.task.samples,
            "attempts": len(attempts),
            "metric": "accuracy",
            "metrics": {"accuracy": as_plain(estimate)},
            "accuracy": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "verdicts": {str(verdict): verdicts[verdict] for verdict in Verdict},
            "truncated": sum(not attempt["finished"] for attempt in attempts),
            "parsed_by": {name: finders[name] for name in self.task.parser},
            "completion_tokens": sum(tokens) if None not in tokens else None,
        }


def to_attempts(rows: Sequence[TaskRow], task: Task, seed: int) -> list[Attempt]:
    """One a row and sample, samples of a row together; each has its own seed, the same in every run."""
    attempts = []
    for row in rows:
        for sample in range(task.samples):
            own = seed_of(f"{seed}/{task.name}/{row.id}/{sample}")
            attempts.append(Attempt(row.id, sample, row.prompt, own))
    return attempts


def _ask(measure: Measure, partial: Partial, label: str) -> None:
    total = len(measure.requests)
    with progress(label, total, len(partial.found)) as shown:
        waiting, started = 0, False
        for replies in measure.ask(partial.found.keys()):
            for index, fields in replies:
                partial.append(index, fields)
            waiting += len(replies)
            # Replies that come back first say little about how long the others beside them take.
            started = started or waiting >= min(measure.at_once, total - len(partial.found) + waiting)
            if started:
                shown.advance(waiting)
                waiting = 0
        shown.advance(waiting)
    missing = total - len(partial.found)
    if missing:
        raise RunError(f"{label}: {missing} of {total} rows got no reply; the same command asks for them again")
