"""A task's rows: read, mapped, checked, and kept apart from what the student was trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compact_distill.answers import choices_of, compare_answers
from compact_distill.data.read import Faults, Row, raise_if_any, read_rows
from compact_distill.data.rows import to_problem
from compact_distill.errors import DataError
from compact_distill.evaluation.task import Task, render
from compact_distill.records import Problem
from compact_distill.runs.files import fingerprint

_LAB_ROWS, _LAB_SEED = 500, 0


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One question: what the student is asked, and the gold answer (with `choices`, one of their labels)."""

    id: str
    question: str
    prompt: str
    gold: str
    choices: Mapping[str, str]


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task that count, and how many were left out because the student was trained on them."""

    task: Task
    rows: tuple[TaskRow, ...]
    seen_in_training: int
    limit: int | None
    everything: tuple[TaskRow, ...] = field(default=(), repr=False)  # before training's rows and the limit went

    @property
    def hash(self) -> str:
        """SHA-256 of ids, prompts and gold answers, in order."""
        return fingerprint([[row.id, row.prompt, row.gold] for row in self.rows])

    def first(self, count: int) -> TaskRows:
        """The same with its first rows only."""
        return replace(self, rows=self.rows[:count], limit=count)

    def apart_from(self, training: Training) -> TaskRows:
        """Its first `limit` rows that the student was not trained on. Raises DataError where none is left."""
        unseen = [row for row in self.everything if not training.holds(row)]
        if not unseen:
            raise DataError(
                f"task {self.task.name}: the student was trained on all {len(self.everything)} rows, so none is left "
                "to examine it with; give other data"
            )
        seen = len(self.everything) - len(unseen)
        return replace(self, rows=tuple(unseen[: self.limit]), seen_in_training=seen)


class Training:
    """What a student was trained on, to be left out of its benchmarks: ids and questions."""

    def __init__(self, problems: Collection[Any] = ()) -> None:
        """Take problems or instances."""
        self._ids = {problem.id for problem in problems}
        self._questions = {_squeezed(problem.question) for problem in problems}

    def holds(self, row: TaskRow) -> bool:
        """Whether the student has seen this row: the same id, or the same question but for white space."""
        return row.id in self._ids or _squeezed(row.question) in self._questions


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def read_task(task: Task, limit: int | None = None, training: Training | None = None) -> TaskRows:
    """Read and check all rows of a task; then take the first `limit` that the student was not trained on.

    Raises:
        DataError: everything that is wrong with the rows, each with its line; no row is left.
    """
    faults = Faults(f"task {task.name}, {task.data.path}" if task.data.path else f"task {task.name}")
    read = _lab_rows(task) if task.data.lab else read_rows(str(task.data.path), task.data.split, faults)
    rows = _rows_of(task, read, faults)
    return TaskRows(task, (), 0, limit, tuple(rows)).apart_from(training or Training())


def _rows_of(task: Task, read: Iterable[Row], faults: Faults) -> list[TaskRow]:
    ids: dict[str, str] = {}
    rows: list[TaskRow] = []
    for source in read:
        row = _mapped(source, task, faults)
        problem = to_problem(row, faults) if row is not None else None
        if problem is None:
            continue
        if problem.id in ids:
            faults.add(source.where, f"id {problem.id!r} stands already in {ids[problem.id]}; give each row its own id")
        ids.setdefault(problem.id, source.where)
        made = _to_row(problem, task, source.where, faults)
        rows += [made] if made is not None else []
    raise_if_any([faults])
    return rows


def _lab_rows(task: Task) -> Iterator[Row]:
    from compact_distill.lab import problems

    if task.data.lab == "arithmetic":
        found = problems.arithmetic("held_out", _LAB_ROWS, _LAB_SEED)
    else:
        found = problems.facts() if task.data.lab == "facts" else problems.yes_no()
    for index, problem in enumerate(found):
        yield Row({"id": problem.id, "question": problem.question, "answer": problem.answer}, index, f"row {index + 1}")


def _mapped(row: Row, task: Task, faults: Faults) -> Row | None:
    """The row under the names that are read here; a row of mapped data without an id gets `task/number`."""
    if not task.data.fields:
        return row
    seen = {**row.fields, "row": row.index}
    fields = {"id": f"{task.name}/{row.index}", **row.fields}
    try:
        fields.update({name: render(template, seen) for name, template in task.data.fields.items()})
    except ValueError as error:
        faults.add(row.where, f"{error}; mend `fields` of the task, or the row")
        return None
    return Row(fields, row.index, row.where)


def _to_row(problem: Problem, task: Task, where: str, faults: Faults) -> TaskRow | None:
    before = faults.count
    choices = _choices(problem.extra.get("choices"), where, faults)
    gold = problem.answer
    if choices and gold not in choices:
        faults.add(where, f"answer must be one of the choices' labels {', '.join(choices)}, got {gold!r}; mend the row")
    try:
        compare_answers("0", gold)
    except ValueError as error:
        faults.add(where, str(error))
    try:
        known = {**problem.extra, "id": problem.id, "question": problem.question, "choices": choices}
        prompt = render(task.prompt, known)
    except ValueError as error:
        faults.add(where, f"{error}; mend `prompt` of the task, or the row")
        return None
    return TaskRow(problem.id, problem.question, prompt, gold, choices) if faults.count == before else None


def _choices(value: Any, where: str, faults: Faults) -> dict[str, str]:
    """Choices as {label: text}, from such an object or from the hub's {"label": [...], "text": [...]}."""
    if value is None:
        return {}
    choices = choices_of(value)
    if choices:
        return choices
    faults.add(
        where, f'choices must be an object like {{"A": "bank", "B": "library"}}, got {value!r:.60}; mend the row'
    )
    return {}
