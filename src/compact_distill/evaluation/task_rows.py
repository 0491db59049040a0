"""A task's rows: read, mapped, checked, kept apart from what the student was trained on; the same inside lm-eval."""

from __future__ import annotations

import atexit
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact_distill.answers import Verifier, choices_of, find_answer
from compact_distill.data.load import need_id, to_problem
from compact_distill.data.read import Faults, Row, raise_if_any, read_rows
from compact_distill.errors import DataError
from compact_distill.evaluation.task import TEXT_SUFFIXES, Task, load_task, render
from compact_distill.records import Verdict
from compact_distill.runs.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

_LAB_ROWS, _LAB_SEED = 500, 0
_FEWSHOT_SEED = 1234  # lm-eval's


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One question: what the student is asked, and the gold answer (with `choices`, one of their labels).

    Of a text whose likelihood is measured, `question` and `prompt` are the text, and there is no answer.
    """

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
        """SHA-256 of ids, prompts, gold answers and choices, in order."""
        return fingerprint([[r.id, r.prompt, r.gold, *([dict(r.choices)] if r.choices else [])] for r in self.rows])

    def first(self, count: int) -> TaskRows:
        """The same with its first rows only."""
        return replace(self, rows=self.rows[:count], limit=count)

    def apart_from(self, training: Training) -> TaskRows:
        """Its first `limit` rows that the student was not trained on. Raises DataError where none is left."""
        unseen = [row for row in self.everything if not training.holds(row)]
        if not unseen:
            raise DataError(
                f"task {self.task.name}: the student was trained on all {len(self.everything)} rows (their questions "
                "or ids are those of training problems), so none is left to examine it with; give other data"
            )
        seen, chosen = len(self.everything) - len(unseen), unseen[: self.limit]
        if self.task.fewshot:
            chosen = _with_examples(unseen, chosen, self.task)
        return replace(self, rows=tuple(chosen), seen_in_training=seen)


class Training:
    """What a student was trained on, to be left out of its benchmarks: ids and questions.

    An id that is a number alone ("12") is where a row stands in its file: it says nothing about those of other files.
    """

    def __init__(self, problems: Collection[Any] = ()) -> None:
        """Take problems or instances."""
        self._ids = {problem.id for problem in problems if not problem.id.isdecimal()}
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
    rows = _rows_of(task, _source_rows(task, faults), faults)
    return TaskRows(task, (), 0, limit, tuple(rows)).apart_from(training or Training())


def _source_rows(task: Task, faults: Faults) -> Iterable[Row]:
    if task.data.lab:
        return _lab_rows(task)
    path = str(task.data.path)
    if not path.endswith(TEXT_SUFFIXES):
        return read_rows(path, task.data.split, faults)
    if task.kind != "likelihood":
        raise DataError(f"task {task.name}: {path} is plain text, which only kind: likelihood reads, got {task.kind}")
    return _paragraphs(Path(path), faults)


def _paragraphs(path: Path, faults: Faults) -> Iterator[Row]:
    """The texts of a plain file: what stands between empty lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte-order mark is no text
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}; check path and encoding") from error
    texts = [part.strip("\n") for part in re.split(r"\n(?:[ \t]*\n)+", text.replace("\r\n", "\n"))]
    texts = [part for part in texts if part.strip()]
    if not texts:
        faults.add("", "holds no text; write some, or name another file")
    for index, found in enumerate(texts):
        yield Row({"text": found}, index, f"text {index + 1}")


def _rows_of(task: Task, read: Iterable[Row], faults: Faults) -> list[TaskRow]:
    ids: dict[str, str] = {}
    rows: list[TaskRow] = []
    for source in read:
        row = _mapped(source, task, faults)
        made = None
        if row is not None:
            made = _to_text(row, faults) if task.kind == "likelihood" else _to_row(row, task, faults)
        if made is None:
            continue
        if made.id in ids:
            faults.add(source.where, f"id {made.id!r} stands already in {ids[made.id]}; give each row its own id")
        ids.setdefault(made.id, source.where)
        rows.append(made)
    raise_if_any([faults])
    return rows


def _lab_rows(task: Task) -> Iterator[Row]:
    from compact_distill import lab

    if task.data.lab == "arithmetic":
        found = lab.arithmetic("held_out", _LAB_ROWS, _LAB_SEED)
    else:
        found = lab.facts() if task.data.lab == "facts" else lab.yes_no()
    for index, problem in enumerate(found):
        yield Row({"id": problem.id, "question": problem.question, "answer": problem.answer}, index, f"row {index + 1}")


def _mapped(row: Row, task: Task, faults: Faults) -> Row | None:
    """The row under the names that are read here; of mapped data and texts, one without an id gets `task/number`."""
    if not task.data.fields and task.kind != "likelihood":
        return row
    seen = {**row.fields, "row": row.index}
    fields = {**row.fields, "id": f"{task.name}/{row.index}" if row.fields.get("id") is None else row.fields["id"]}
    try:
        fields.update({name: render(template, seen) for name, template in task.data.fields.items()})
    except ValueError as error:
        faults.add(row.where, f"{error}; mend `fields` of the task, or the row")
        return None
    return Row(fields, row.index, row.where)


def _to_text(row: Row, faults: Faults) -> TaskRow | None:
    before, text, name = faults.count, row.fields.get("text"), need_id(row, faults)
    if not isinstance(text, str) or not text.strip():
        faults.add(row.where, f"text must be the text that is read, got {text!r:.60}; mend the row or `fields`")
    return TaskRow(name, str(text), str(text), "", {}) if faults.count == before else None


def _to_row(row: Row, task: Task, faults: Faults) -> TaskRow | None:
    before, where = faults.count, row.where
    problem = to_problem(row, faults)
    if problem is None:
        return None
    choices = _choices(problem.extra.get("choices"), where, faults) or dict(task.choices)
    gold = problem.answer
    if task.kind == "choice" and len(choices) < 2:
        faults.add(where, f"choices must be two or more for kind: choice, got {len(choices)}; add them to row or task")
    if choices and gold not in choices:
        faults.add(where, f"answer must be one of the choices' labels {', '.join(choices)}, got {gold!r}; mend the row")
    try:
        known = {**problem.extra, "id": problem.id, "question": problem.question, "choices": choices}
        prompt = render(task.prompt, known)
    except ValueError as error:
        faults.add(where, f"{error}; mend `prompt` of the task, or the row")
        return None
    return TaskRow(problem.id, problem.question, prompt, gold, choices) if faults.count == before else None


def _with_examples(known: Sequence[TaskRow], rows: Sequence[TaskRow], task: Task) -> list[TaskRow]:
    """The rows with solved examples before their prompts: for each the same, but never the row itself.

    They are drawn once, by a fixed seed, from all rows that the student was not trained on, so that neither the limit
    nor the other rows change what a row is asked. One more than needed is drawn, for the rows that are among them.
    """
    order = sorted(known, key=lambda row: fingerprint([_FEWSHOT_SEED, task.name, row.id]))
    made = []
    for row in rows:
        own = _squeezed(row.question)
        others = islice((other for other in order if _squeezed(other.question) != own), task.fewshot)
        shown = [f"{other.prompt} {other.choices[other.gold]}\n\n" for other in others]
        if len(shown) < task.fewshot:
            raise DataError(
                f"task {task.name}: fewshot is {task.fewshot}, but only {len(shown)} rows ask something else than row "
                f"{row.id!r}; lower it"
            )
        made.append(replace(row, prompt="".join(shown) + row.prompt))
    return made


def _choices(value: Any, where: str, faults: Faults) -> dict[str, str]:
    """Choices as {label: text}, from such an object or from the hub's {"label": [...], "text": [...]}."""
    if value is None:
        return {}
    choices = choices_of(value)
    if choices:
        return choices
    faults.add(
        where,
        'choices must be an object like {"A": "bank", "B": "library"}, each label once and with its text, got '
        f"{value!r:.60}; mend the row",
    )
    return {}


# ---- inside lm-eval: what the YAML files of `lm_eval_tasks/` call, our definitions' rows and scores
#
# lm-eval generates; prompt, parser and comparison are those of `compact eval`. One thing lm-eval does not tell: whether
# the token limit cut a text. A cut text therefore counts like one that ended by itself, and its last number may be
# taken for an answer where `compact eval` counts it as unparsed.

LM_EVAL_TASKS = Path(__file__).with_name("lm_eval_tasks")
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


lm_eval_gsm8k, lm_eval_svamp, lm_eval_math500, lm_eval_csqa, lm_eval_strategyqa = (
    partial(_dataset, name) for name in ("gsm8k", "svamp", "math500", "csqa", "strategyqa")
)
lm_eval_csqa_likelihood, lm_eval_strategyqa_likelihood = (
    partial(_dataset, name) for name in ("csqa_likelihood", "strategyqa_likelihood")
)


def lm_eval_score(row: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's `process_results`: 1 for a correct answer, and 1 where none was found."""
    answer, _ = find_answer(results[0], True, load_task(row["task"]).parser, json.loads(row["choices"]))
    verdict = _verifier().verify(answer, row["gold"])
    return {"accuracy": float(verdict == Verdict.CORRECT), "unparsed": float(verdict == Verdict.UNPARSED)}


@cache
def _verifier() -> Verifier:
    verifier = Verifier()
    atexit.register(verifier.close)
    return verifier
