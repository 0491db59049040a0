"""Load problems, and problems with their rationales; all that is wrong is told at once, and nothing is mended."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from compact_distill.answers.stated import tidy
from compact_distill.data.read import Faults, Row, as_json, raise_if_any, read_rows
from compact_distill.errors import DataError, shortened, shown
from compact_distill.records import AnswerFrom, Instance, Problem, Rationale, Verdict
from compact_distill.runs.progress import progress_over

Source = str | Path
_SOLUTION = re.compile(r"(?<!#)####(?!#)([^\n#]+)\Z")  # GSM8K's gold answers are solutions that end so
_PROBLEM_KEYS = ("id", "question", "answer")
_RATIONALE_KEYS = ("teacher", "text", "answer", "answer_from", "sample", "verdict")


def load_problems(source: Source, *, limit: int | None = None, split: str = "train") -> list[Problem]:
    """Load problems: rows `{"id", "question", "answer"}`; other fields are kept in `extra`.

    Args:
        source: JSONL or Parquet file, `datasets` folder or hub name (see `read_rows`).
        limit: take the first N; all rows are checked nevertheless.
        split: split of a `datasets` folder or hub dataset.

    Returns:
        The problems in the order of the input. An id or answer that is a number becomes text ("18" for 18 and 18.0).

    Raises:
        DataError: everything that is wrong with the input, each with its line.
    """
    _check_limit(limit)
    problems = _Problems(source, split)
    raise_if_any([problems.faults])
    return problems.found[:limit]


def load_instances(
    source: Source | Sequence[Source],
    *,
    problems: Source | None = None,
    limit: int | None = None,
    split: str = "train",
    require_rationale: bool = True,
) -> list[Instance]:
    """Load problems together with their rationales; everything joins on `id`, never on position.

    ```python
    from compact_distill import load_instances

    for instance in load_instances("data.jsonl"):
        print(instance.id, instance.answer, instance.teachers)  # 1 12 ('qwq', 'llama')
    ```

    Args:
        source: training data, `{"id", "question", "answer", "rationales": [{"teacher", "text", ...}]}` or the published
            code's `{"Question", "CoT": [...], "Answer"}` (see `from_published`), from one or several inputs. With
            `problems`: rationale stores, `{"id", "teacher", "sample", "text", "answer", "verdict", "status", ...}`, one
            or several files, or a folder of `.jsonl` files.
        problems: where the problems are that the stores belong to.
        limit: take the first N problems; all rows are checked nevertheless.
        split: split of a `datasets` folder or hub dataset.
        require_rationale: a problem without any rationale is an error. Where a run may go on without it: False; it
            then comes back with no or only missing rationales, for the caller to count.

    Returns:
        The instances in the order of the problems. A missing rationale (no text, or a status other than "ok") is kept
        with empty text. Rationales have the row's order; those of stores the order of the teachers' first appearance,
        then of the samples.

    Raises:
        DataError: everything that is wrong with all inputs, each with its line.
    """
    _check_limit(limit)
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise DataError("source must name at least one file, got none; give the rationales' file")
    if problems is None:
        return _load_training_data(sources, split, require_rationale)[:limit]
    return _join(_Problems(problems, split), sources, limit, split, require_rationale)


def _load_training_data(sources: list[Source], split: str, require_rationale: bool) -> list[Instance]:
    inputs = [Faults(source) for source in sources]
    ids = _Ids()
    instances: list[Instance] = []
    for source, faults in zip(sources, inputs, strict=True):
        for row in _rows(source, split, faults):
            ids.add(row, faults)
            if (instance := to_instance(row, faults, require_rationale)) is not None:
                instances.append(instance)
    raise_if_any(inputs)
    return instances


def _join(
    problems: _Problems, sources: list[Source], limit: int | None, split: str, require_rationale: bool
) -> list[Instance]:
    stores = _Stores(problems)
    for path in _store_files(sources):
        stores.read(path, split)
    instances = [stores.instance(problem) for problem in problems.found[:limit]]
    if require_rationale and not stores.any_faults():
        for instance in instances:
            if not any(rationale.text for rationale in instance.rationales):
                where, left = problems.ids.where[instance.id], _not_ok(instance.rationales)
                problems.faults.add(
                    where, f"problem {instance.id!r} has no rationale at all in the stores{left}; generate one"
                )
    raise_if_any([problems.faults, *stores.inputs])
    return instances


class _Ids:
    """Where each id was first seen; a second time is a fault."""

    def __init__(self) -> None:
        self.where: dict[str, str] = {}
        self._source: dict[str, str] = {}

    def add(self, row: Row, faults: Faults) -> None:
        """Note the row's id; that a row has none is told by whoever makes a record of it."""
        identity = read_id(row)
        if identity is None:
            return
        if identity in self.where:
            source = self._source[identity]
            first = self.where[identity] if source == faults.source else f"{source}, {self.where[identity]}"
            faults.add(row.where, f"id {identity!r} stands already in {first}; give each problem its own id")
        else:
            self.where[identity] = row.where
            self._source[identity] = faults.source


class _Problems:
    """A file of problems: the good ones, all ids, the faults."""

    def __init__(self, source: Source, split: str) -> None:
        self.faults = Faults(source)
        self.ids = _Ids()
        self.found: list[Problem] = []
        for row in _rows(source, split, self.faults):
            self.ids.add(row, self.faults)
            if (problem := to_problem(row, self.faults)) is not None:
                self.found.append(problem)


class _Stores:
    """Rationale stores, joined by problem id."""

    def __init__(self, problems: _Problems) -> None:
        self.problems = problems
        self.inputs: list[Faults] = []
        self._by_id: dict[str, list[Rationale]] = {}
        self._seen: dict[tuple[str, str], str] = {}
        self._rank: dict[str, int] = {}  # teachers by first appearance

    def any_faults(self) -> bool:
        return self.problems.faults.count > 0 or any(faults.count for faults in self.inputs)

    def read(self, source: Source, split: str) -> None:
        faults = Faults(source)
        self.inputs.append(faults)
        for row in progress_over(f"read {source}", read_rows(source, split, faults), brief=True):
            if "rationales" in row.fields or "CoT" in row.fields:
                faults.add(row.where, "is training data, with its problem in the row; leave `problems` out")
                continue
            self._add(row, faults)

    def _add(self, row: Row, faults: Faults) -> None:
        before = faults.count
        identity = need_id(row, faults)
        fields = {key: value for key, value in row.fields.items() if key != "id"}
        rationale = to_rationale(fields, row.where, faults)
        if rationale is None or faults.count > before:
            return
        if identity not in self.problems.ids.where:
            if not self.problems.faults.count:
                where = self.problems.faults.source
                faults.add(row.where, f"id {identity!r} is of no problem in {where}; remove the row or add the problem")
            return
        name = sample_name(rationale)
        if (identity, name) in self._seen:
            first = self._seen[identity, name]
            faults.add(row.where, f"{name!r} of problem {identity!r} stands already in {first}; keep one of them")
            return
        self._seen[identity, name] = f"{faults.source}, {row.where}"
        self._rank.setdefault(rationale.teacher, len(self._rank))
        self._by_id.setdefault(identity, []).append(rationale)

    def instance(self, problem: Problem) -> Instance:
        found = sorted(self._by_id.get(problem.id, ()), key=lambda r: (self._rank[r.teacher], r.sample))
        return Instance(problem.id, problem.question, problem.answer, tuple(found), problem.extra)


def _store_files(sources: list[Source]) -> Iterator[Source]:
    """The files of stores; a folder of `.jsonl` files stands for them, in the order of their names."""
    for source in sources:
        path = Path(source)
        files: list[Path] = sorted(path.glob("*.jsonl")) if path.is_dir() else []
        yield from files if files else [source]


def _rows(source: Source, split: str, faults: Faults) -> Iterator[Row]:
    for row in progress_over(f"read {source}", read_rows(source, split, faults), brief=True):
        if (renamed := from_published(row, faults)) is not None:
            yield renamed


def _check_limit(limit: Any) -> None:
    if limit is not None and (not isinstance(limit, Integral) or isinstance(limit, bool) or limit < 1):
        raise DataError(f"limit must be a whole number >= 1, got {limit!r}; leave it out to take all problems")


# ---- a row as a record


def read_id(row: Row) -> str | None:
    """The row's id as text, a whole number too; None where it has none."""
    value = row.fields.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def need_id(row: Row, faults: Faults) -> str:
    """The row's id; where it has none, that is a fault."""
    identity = read_id(row)
    if identity is None:
        faults.add(row.where, f"id must be text or a whole number, {_got(row.fields, 'id')}; write the problem's id")
    return identity or ""


def to_problem(row: Row, faults: Faults) -> Problem | None:
    """The row as a problem, or None where something in it is wrong."""
    before = faults.count
    identity = need_id(row, faults)
    question = row.fields.get("question")
    if not isinstance(question, str) or not question.strip():
        faults.add(row.where, f"question must be text, {_got(row.fields, 'question')}; write the question")
    answer = _answer(row.fields.get("answer"))
    solution = _SOLUTION.search(answer) if answer and len(answer) < 20_000 else None
    if solution is not None:
        answer = solution[1].strip()
        faults.solutions += 1
    got = _got(row.fields, "answer")
    if answer is None:
        faults.add(row.where, f"answer must be the gold answer as text or a number, {got}; write it or remove the row")
    elif not tidy(answer):  # nothing is left of it to compare
        faults.add(row.where, f"answer must be more than the marks around an answer, {got}; write it in words")
    if faults.count > before:
        return None
    extra = {key: as_json(value) for key, value in row.fields.items() if key not in _PROBLEM_KEYS}
    return Problem(identity, str(question), str(answer), extra)


def to_instance(row: Row, faults: Faults, require_rationale: bool) -> Instance | None:
    """The row of training data as an instance, or None where something in it is wrong."""
    before = faults.count
    if "rationales" not in row.fields and "teacher" in row.fields:
        store = "is a row of a rationale store; say where its problems are too (`problems:`)"
        one = "holds one rationale; write all of a problem into the list `rationales` of one row (docs/own-data.md)"
        faults.add(row.where, one if "question" in row.fields else store)
        return None
    problem = to_problem(row, faults)
    rationales = _rationales(row, faults)
    if faults.count == before and require_rationale and not any(r.text for r in rationales):
        faults.add(row.where, f"has no rationale at all{_not_ok(rationales)}; write at least one or remove the row")
    if problem is None or faults.count > before:
        return None
    extra = {key: value for key, value in problem.extra.items() if key != "rationales"}
    return Instance(problem.id, problem.question, problem.answer, tuple(rationales), extra)


def _not_ok(rationales: Sequence[Rationale]) -> str:
    """Which statuses took rationales out."""
    statuses = sorted({shown(r.extra["status"]) for r in rationales if r.extra.get("status") not in (None, "ok")})
    return f" (status {', '.join(statuses)}, and only 'ok' takes part)" if statuses else ""


def _rationales(row: Row, faults: Faults) -> list[Rationale]:
    listed = row.fields.get("rationales")
    if isinstance(listed, dict):  # as `datasets` keeps a list of objects
        listed = _transposed(listed)
    if not isinstance(listed, list):
        got = _got(row.fields, "rationales")
        faults.add(row.where, f"rationales must be a list of objects with teacher and text, {got}; write such a list")
        return []
    rationales: list[Rationale] = []
    seen: dict[str, int] = {}
    for number, fields in enumerate(listed, start=1):
        where = f"{row.where}, rationale {number}"
        if not isinstance(fields, dict):
            faults.add(where, f"must be an object with teacher and text, got {shown(fields)}; write such an object")
            continue
        if (rationale := to_rationale(fields, where, faults)) is None:
            continue
        name = sample_name(rationale)
        if name in seen:
            faults.add(where, f'{name!r} stands already in rationale {seen[name]}; number further samples: "sample": 1')
        seen[name] = number
        rationales.append(rationale)
    return rationales


def _transposed(columns: dict[str, Any]) -> Any:
    """`{"teacher": [...], "text": [...]}` as a list of objects; what is not of that kind comes back as it is."""
    values = list(columns.values())
    if not values or not all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        return columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def to_rationale(fields: dict[str, Any], where: str, faults: Faults) -> Rationale | None:
    """The fields as a rationale, or None where something in them is wrong.

    A rationale without text, or whose status is not "ok", is a missing one: its text is empty. The status stays in
    `extra`, beside all fields that are not a rationale's own.
    """
    before = faults.count
    teacher = fields.get("teacher")
    if not isinstance(teacher, str) or not teacher.strip():
        faults.add(where, f"teacher must be text, {_got(fields, 'teacher')}; write the teacher's name")
    status = fields.get("status")
    if status is not None and not isinstance(status, str):
        faults.add(where, f'status must be text, {_got(fields, "status")}; write "ok" or leave it out')
    failed = status not in (None, "ok")
    text = fields.get("text")
    if (text is None and "text" not in fields and not failed) or not isinstance(text, str | None):
        faults.add(where, f"text must be text, {_got(fields, 'text')}; write null where the teacher failed")
    answer = _answer(fields.get("answer"))
    if answer is None and fields.get("answer") not in (None, ""):
        faults.add(where, f"answer must be text or a number, {_got(fields, 'answer')}; write null where there is none")
    sample = fields.get("sample")
    sample = 0 if sample is None else sample
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 0:
        faults.add(where, f"sample must be a whole number >= 0, {_got(fields, 'sample')}; number samples from 0")
    verdict, origin = fields.get("verdict"), fields.get("answer_from")
    for key, given, known in (("verdict", verdict, list(Verdict)), ("answer_from", origin, list(AnswerFrom))):
        if given is not None and given not in known:
            names = ", ".join(known)
            faults.add(where, f"{key} must be one of {names}, {_got(fields, key)}; write one of them or null")
    if faults.count > before:
        return None
    present = isinstance(text, str) and bool(text.strip()) and not failed
    return Rationale(
        teacher=str(teacher),
        text=str(text) if present else "",
        answer=answer,
        sample=sample,
        verdict=None if verdict is None else Verdict(verdict),
        answer_from=None if origin is None else AnswerFrom(origin),
        extra={key: as_json(value) for key, value in fields.items() if key not in _RATIONALE_KEYS},
    )


def from_published(row: Row, faults: Faults) -> Row | None:
    """Turn a row of the published code, {"Question", "CoT": [...], "Answer"}, into training data; others stay.

    It has no ids and no names: the id is the number of the row from 0 (unless it has an id), the k-th text is that of
    `teacher_k`, k from 0. A null text is a missing rationale.
    """
    fields = row.fields
    if "CoT" not in fields:
        return row
    texts = fields["CoT"]
    if not isinstance(texts, list) or not all(isinstance(text, str | None) for text in texts):
        faults.add(row.where, f"CoT must be a list of texts, one a teacher, {_got(fields, 'CoT')}; write such a list")
        return None
    renamed = {key: value for key, value in fields.items() if key not in ("Question", "CoT", "Answer")}
    renamed.setdefault("id", row.index)
    renamed.update(question=fields.get("Question"), answer=fields.get("Answer"))
    renamed["rationales"] = [{"teacher": f"teacher_{k}", "text": text} for k, text in enumerate(texts)]
    return Row(renamed, row.index, row.where)


def sample_name(rationale: Rationale) -> str:
    """What a rationale is called among those of its problem: the teacher's name, `teacher#1` for its second sample."""
    return rationale.teacher if rationale.sample == 0 else f"{rationale.teacher}#{rationale.sample}"


def _answer(value: Any) -> str | None:
    """An answer as stripped text; a number becomes text, without ".0" where it is whole. None: it is neither."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(int(value) if value == int(value) else value)


def _got(fields: dict[str, Any], key: str) -> str:
    if key in fields:
        return f"got {shown(fields[key])}"
    return f"but it is not there, only {shortened(', '.join(fields))}" if fields else "but it is not there"
