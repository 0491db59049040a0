"""Examine students on a run's benchmarks: what `compact eval`, `compact drift` and the pipeline's eval stage do."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compact_distill.config.models import EvalConfig, TextConfig
from compact_distill.errors import CompactError, ConfigError, InputError, RunError, StudentError, nearest
from compact_distill.evaluation.drift import MIN_PROMPTS, check_sets, describe_drift, measure_drift, prompts_in
from compact_distill.evaluation.harness import Subject, describe, evaluate_task
from compact_distill.evaluation.result_files import (
    BASE,
    CHANGES,
    DRIFT,
    STUDENT,
    compare_students,
    describe_changes,
    main_value,
    put_aside,
    read_result,
    result_path,
    rows_path,
    student_folders,
    tasks_done,
    write_result,
)
from compact_distill.evaluation.task import load_tasks
from compact_distill.evaluation.task_rows import TaskRows, Training, read_task
from compact_distill.evaluation.writers import ServedWriter, StudentWriter, Writer
from compact_distill.runs.environment import accelerator
from compact_distill.runs.files import Lock, fingerprint
from compact_distill.runs.progress import say
from compact_distill.students.identity import student_hash
from compact_distill.students.load import check_student, load_student

ROLES = ("learned", "retained")
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Exam:
    """The rows of every benchmark with its role (None: nobody said), and how students are asked."""

    rows: tuple[tuple[str | None, TaskRows], ...]
    settings: EvalConfig
    text: TextConfig
    seed: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the results but the students: no path, and nothing of speed or memory.

        Limits, samples and the like stand in the rows and their tasks already.
        """
        asked = [[role, rows.task.model_dump(mode="json", exclude={"data"}), rows.hash] for role, rows in self.rows]
        return fingerprint([asked, self.settings.drift_rows, self.text.model_dump(mode="json"), self.seed])

    def apart_from(self, trained_on: Collection[Any]) -> Exam:
        """The same without the rows among these problems or instances. Raises DataError where a task has none left."""
        training = Training(trained_on)
        return replace(self, rows=tuple((role, rows.apart_from(training)) for role, rows in self.rows))

    def __bool__(self) -> bool:
        return bool(self.rows)


def prepare_exam(
    settings: EvalConfig,
    text: TextConfig,
    seed: int,
    trained_on: Collection[Any] = (),
    only: Sequence[str] = (),
) -> Exam:
    """Load and check benchmarks, before any work.

    Args:
        settings: the benchmarks and how students are asked.
        text: the prompt template of students without chat template.
        seed: of sampling and bootstraps.
        trained_on: problems or instances; the benchmarks' rows among them are left out and counted.
        only: take these instead of the settings' own, which still say what role each of them has.

    Raises:
        InputError: everything that is wrong with tasks and rows.
    """
    roles: dict[str, str | None] = {name: role for role in ROLES for name in getattr(settings, role)}
    if only:
        by_task = {name.partition("=")[0]: role for name, role in roles.items()}
        roles = {name: by_task.get(name.partition("=")[0]) for name in only}
    training = Training(trained_on)
    rows: list[tuple[str | None, TaskRows]] = []
    wrong: list[str] = []
    tasks = load_tasks(roles)
    if isinstance(settings.limit, dict) and not only:
        names = [task.name for task in tasks]
        wrong += [
            f"limit names {name!r}, which is none of the benchmarks {', '.join(names)}{nearest(name, names)}"
            for name in settings.limit
            if name not in names
        ]
    for task, role in zip(tasks, roles.values(), strict=True):
        limit = settings.limit.get(task.name) if isinstance(settings.limit, dict) else settings.limit
        try:
            decoding = settings.model_dump(include={"samples", "temperature", "max_new_tokens"})
            asked = task.changed(**decoding) if task.kind == "generate" else task
            rows.append((role, read_task(asked, limit, training)))
        except InputError as error:
            wrong += error.problems
    if wrong:
        raise InputError(wrong)
    return Exam(tuple(rows), settings, text, seed)


def own_limits(settings: EvalConfig, others: Collection[str]) -> EvalConfig:
    """The settings without limits of other benchmarks than their own, such as those that a study tunes on.

    Where a benchmark cannot be read nothing changes: who reads it says so.
    """
    if not isinstance(settings.limit, dict) or not others:
        return settings
    try:
        foreign = {task.name for task in load_tasks(others)}
        foreign -= {task.name for task in load_tasks({*settings.learned, *settings.retained})}
    except InputError:
        return settings
    kept = {name: count for name, count in settings.limit.items() if name not in foreign}
    return settings.model_copy(update={"limit": kept or None})


def examine(writer: Writer, subject: Subject, exam: Exam, folder: Path) -> list[dict[str, Any]]:
    """Ask one student every benchmark; results of another student in its folder are moved aside.

    Args:
        writer: the student.
        subject: what is said about it.
        exam: the benchmarks.
        folder: where results go, such as RUN/eval/base.
    """
    _forget_others(folder, subject.hash)
    # Reading likelihoods puts other layers into the student, so whatever is written comes first.
    order = sorted(exam.rows, key=lambda pair: pair[1].task.kind != "generate")
    return [evaluate_task(writer, subject, rows, folder, role=role, seed=exam.seed) for role, rows in order]


def examine_student(student: str, subject: Subject, exam: Exam, folder: Path) -> list[dict[str, Any]]:
    """The same for a student by folder or hub name, in this process. Raises StudentError where it cannot be loaded."""
    return examine(_writer(student, exam), subject, exam, folder)


def _writer(student: str, exam: Exam) -> StudentWriter:
    model, tokenizer = load_student(student, device=accelerator())
    return StudentWriter(model, tokenizer, exam.text, exam.settings.batch_tokens)


def evaluate(
    student: str | Path,
    tasks: Sequence[str],
    out: str | Path = "eval",
    *,
    settings: EvalConfig | None = None,
    text: TextConfig | None = None,
    seed: int = 42,
    server: ServedWriter | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate a student that belongs to no run, in this process or at a server; what was done already is not redone.

    ```python
    from compact_distill import EvalConfig, evaluate

    found = evaluate("HuggingFaceTB/SmolLM2-135M-Instruct", ["csqa_likelihood"], settings=EvalConfig(limit=200))
    print(found["csqa_likelihood"]["result"]["metrics"]["acc_norm"])  # {"value": ..., "low": ..., "high": ...}
    ```

    Args:
        student: hub name, model folder or adapter folder; with `server` what the server calls it.
        tasks: names of benchmarks, `name=FILE`, files of problems or of text, tasks' YAML files.
        out: results go to a folder below it that is named after the whole of the student's name or path.
        settings: how it is asked: limit, samples, temperature ...
        text: the prompt template of students without chat template.
        seed: of sampling and bootstraps.
        server: who answers; None: the student is loaded. What weights a server has is unknown: its address and the
            name stand for them.

    Returns:
        The result files' contents by the task's name (docs/evaluation.md).

    Raises:
        InputError: everything that is wrong with student and benchmarks.
        RunError: requests that got no reply; the same call asks for them again. Another process does so already.
    """
    exam = prepare_exam(settings or EvalConfig(), text or TextConfig(), seed, only=tasks)
    if not exam:
        raise ConfigError("evaluate needs a benchmark, got none; name one, such as gsm8k or csqa_likelihood")
    label = results_name(student)
    folder = Path(out) / label
    subject = Subject(label, str(student), student_hash(student) if server is None else fingerprint(server.settings()))
    writer = _writer(str(student), exam) if server is None else server
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locks:
        for name in (rows.task.name for _, rows in exam.rows):
            locks.enter_context(Lock(folder / f".{name}.lock", result_path(folder, name)))
        documents = examine(writer, subject, exam, folder)
    return {document["task"]["name"]: document for document in documents}


def results_name(student: str | Path) -> str:
    """What a student's folder of results is called: the whole of its name or path, so that no two share one.

    `Qwen/Qwen2.5-0.5B` is `Qwen--Qwen2.5-0.5B`; a folder goes by its path from here, however it is written.
    """
    name = str(student)
    if os.path.exists(student):  # unlike Path's, false where a name is too long
        path = Path(student).resolve()
        name = (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path).as_posix()
    parts = [part for part in name.split("/") if part.strip(".")] or [STUDENT]
    plain = "--".join(re.sub(r"[^\w.\-]", "_", part) for part in parts).lstrip(".-")
    if plain.split("--") == parts and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[-_LONGEST_NAME:].lstrip('.-')}-{fingerprint(name)[:8]}"


def examine_run(base: str, student: Path, exam: Exam, folder: Path) -> dict[str, Any]:
    """Examine a run's base and student, compare them, and measure the drift.

    Args:
        base: the student before training, as the configuration names it.
        student: RUN/student.
        exam: the benchmarks.
        folder: RUN/eval.

    Returns:
        For the stage's summary: the measure that counts, by student and task.
    """
    for _, rows in exam.rows:
        if seen := rows.seen_in_training:
            of = f"{seen} of {len(rows.everything)} rows"
            say(f"eval: {of} of {rows.task.name} are left out: the student was trained on their problems")
    documents = examine_student(base, Subject(BASE, base, student_hash(base), 0, 0.0), exam, folder / BASE)
    documents += examine_student(str(student), trained_subject(student, STUDENT), exam, folder / STUDENT)
    write_changes(folder, BASE, STUDENT, exam.seed)
    sets = drift_sets(exam)
    for role in [role for role in sets if prompts_in(sets[role]) < MIN_PROMPTS]:
        say(f"drift: {role} has {prompts_in(sets.pop(role))} prompts, needs {MIN_PROMPTS}; not measured")
    if sets:
        write_drift(folder, base, str(student), STUDENT, exam, sets)
    summary: dict[str, Any] = {}
    for document in documents:
        of_student = summary.setdefault(document["student"]["label"], {})
        of_student[document["task"]["name"]] = main_value(document)
    return summary


def trained_subject(student: Path, label: str) -> Subject:
    """A run's student or one of its checkpoints, with the steps and epochs that its trainer wrote down."""
    name = STUDENT if label == STUDENT else f"{STUDENT}/{label}"
    try:
        state = json.loads((student / "trainer_state.json").read_text(encoding="utf-8"))
        step, epoch = int(state["global_step"]), float(state["epoch"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise RunError(f"{student} is no finished checkpoint: trainer_state.json cannot be read ({error!r})") from error
    return Subject(label, name, student_hash(student), step, epoch)


def examine_drift(base: str, student: str, exam: Exam, folder: Path, benchmarks: bool = True) -> None:
    """Measure the drift of any student from any base; with `benchmarks` both sit the retained ones too."""
    if wrong := [*check_student(base), *check_student(student)]:
        raise StudentError(wrong)
    sets = drift_sets(exam)
    check_sets(sets)
    retained = replace(exam, rows=tuple(pair for pair in exam.rows if pair[0] == "retained"))
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / ".drift.lock", folder / DRIFT):
        if benchmarks and retained:
            for label, name in ((BASE, base), (STUDENT, student)):
                examine_student(name, Subject(label, name, student_hash(name)), retained, folder / label)
            write_changes(folder, BASE, STUDENT, exam.seed)
        write_drift(folder, base, student, student, exam, sets)


def drift_sets(exam: Exam) -> dict[str, list[TaskRows]]:
    """The prompts that drift is measured on, by role: the first `drift_rows` of each benchmark; texts have none."""
    count = exam.settings.drift_rows
    asked = [(role, rows.first(count)) for role, rows in exam.rows if count and rows.task.kind != "likelihood"]
    sets = {role: [rows for own, rows in asked if own == role] for role in ROLES}
    return {role: rows for role, rows in sets.items() if rows}


def summary_lines(folder: Path) -> list[str]:
    """What an eval folder holds, a line each: results, changes, what cannot be compared, drift."""
    lines = []
    for student in sorted(student_folders(folder), key=_by_training):
        lines += [describe(read_result(result_path(student, task))) for task in tasks_done(student)]
    if (folder / CHANGES).is_file():
        lines += describe_changes(read_result(folder / CHANGES))
    if (folder / DRIFT).is_file():
        lines += describe_drift(read_result(folder / DRIFT))
    return lines


def _by_training(student: Path) -> tuple[int, int, str]:
    """Base, checkpoints by their steps, everybody else."""
    step = student.name.removeprefix("checkpoint-")
    return (1, int(step), "") if step.isdecimal() else (0 if student.name == BASE else 2, 0, student.name)


def write_changes(eval_folder: Path, before: str, after: str, seed: int) -> dict[str, Any]:
    """Compare two students of an eval folder on the same rows and write `changes.json`."""
    document = compare_students(eval_folder / before, eval_folder / after, seed)
    write_result(eval_folder / CHANGES, document, keep=True)
    return document


def write_drift(
    eval_folder: Path, base: str, student: str, name: str, exam: Exam, sets: Mapping[str, Sequence[TaskRows]]
) -> dict[str, Any]:
    """Measure the drift on sets of prompts, unless that was done, and write `drift.json`; `name` is the student's.

    The retained benchmarks' changes are taken from `changes.json`, where that is of these two.
    """
    prompts = {role: [rows.hash for rows in tasks] for role, tasks in sets.items()}
    hashes = [student_hash(base), student_hash(student)]
    key = fingerprint([*hashes, prompts, exam.text.model_dump(), exam.seed])
    path = eval_folder / DRIFT
    changes: list[dict[str, Any]] = []
    if (eval_folder / CHANGES).is_file():
        read = read_result(eval_folder / CHANGES)["changes"]
        changes = [c for c in read if c["role"] == "retained" and _examined(eval_folder, c["task"]) == hashes]
    with contextlib.suppress(RunError):  # not there, or not to be trusted
        found = read_result(path)
        if found.get("key") == key and found.get("changes") == changes:
            return found
    measured = measure_drift(base, student, sets, text=exam.text, device=accelerator(), seed=exam.seed)
    measured["student"]["name"] = name
    document = {"format": measured.pop("format"), "key": key, **measured, "changes": changes}
    eval_folder.mkdir(parents=True, exist_ok=True)
    put_aside(path, "it is of other models, prompts or settings")
    write_result(path, document)
    return document


def _examined(eval_folder: Path, task: str) -> list[str | None]:
    """The hashes of base and student whose results on a task an eval folder holds."""
    return [_whose(eval_folder / label, task) for label in (BASE, STUDENT)]


def _whose(folder: Path, task: str) -> str | None:
    """The hash of the student whose result this is; None where it cannot be read: it is done again where asked for."""
    try:
        return str(read_result(result_path(folder, task))["student"]["hash"])
    except (CompactError, KeyError, TypeError):
        return None


def _forget_others(folder: Path, student: str) -> None:
    for task in tasks_done(folder):
        if _whose(folder, task) not in (None, student):
            for path in (result_path(folder, task), rows_path(folder, task)):
                put_aside(path, "it is another student's")
