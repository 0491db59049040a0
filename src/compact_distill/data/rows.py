"""Rows to records, and back: check a row and make a problem, instance or rationale of it; export instances as rows.

A wrong row is noted, never mended. The rows that are written are those that TRL, axolotl and LLaMA-Factory read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compact_distill.answers import FoundAnswer, answers_of
from compact_distill.config.models import TextConfig
from compact_distill.data.read import Faults, Row, short
from compact_distill.errors import DataError
from compact_distill.records import AnswerFrom, Instance, Problem, Rationale, Verdict
from compact_distill.runs.files import atomic_write, json_line

_SOLUTION = re.compile(r"(?<!#)####(?!#)([^\n#]+)\Z")  # GSM8K's gold answers are solutions that end so
_PROBLEM_KEYS = ("id", "question", "answer")
_RATIONALE_KEYS = ("teacher", "text", "answer", "answer_from", "sample", "verdict")


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
    if answer is None:
        got = _got(row.fields, "answer")
        faults.add(row.where, f"answer must be the gold answer as text or a number, {got}; write it or remove the row")
    if faults.count > before:
        return None
    extra = {key: value for key, value in row.fields.items() if key not in _PROBLEM_KEYS}
    return Problem(identity, str(question), str(answer), extra)


def to_instance(row: Row, faults: Faults, require_rationale: bool) -> Instance | None:
    """The row of training data as an instance, or None where something in it is wrong."""
    before = faults.count
    if "rationales" not in row.fields and "teacher" in row.fields:
        faults.add(row.where, "is a row of a rationale store; say where its problems are too (`problems:`)")
        return None
    problem = to_problem(row, faults)
    rationales = _rationales(row, faults)
    if faults.count == before and require_rationale and not any(r.text for r in rationales):
        faults.add(row.where, "has no rationale at all; write at least one or remove the row")
    if problem is None or faults.count > before:
        return None
    extra = {key: value for key, value in problem.extra.items() if key != "rationales"}
    return Instance(problem.id, problem.question, problem.answer, tuple(rationales), extra)


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
            faults.add(where, f"must be an object with teacher and text, got {short(fields)}; write such an object")
            continue
        rationale = to_rationale(fields, where, faults)
        if rationale is None:
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
    verdict = fields.get("verdict")
    if verdict is not None and verdict not in list(Verdict):
        names = ", ".join(Verdict)
        faults.add(where, f"verdict must be one of {names}, {_got(fields, 'verdict')}; write one of them or null")
    origin = fields.get("answer_from")
    if origin is not None and origin not in list(AnswerFrom):
        names = ", ".join(AnswerFrom)
        faults.add(where, f"answer_from must be one of {names}, {_got(fields, 'answer_from')}; write one or null")
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
        extra={key: value for key, value in fields.items() if key not in _RATIONALE_KEYS},
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
    return f"got {short(fields[key])}" if key in fields else "but it is not there"


Format = Literal["prompt_completion", "messages"]


@dataclass(frozen=True, slots=True)
class ExportCounts:
    """What became of the rationales: rows written, missing ones, and those without an answer that can be parsed."""

    written: int
    missing: int
    unparsed: int


def export_instances(
    instances: Iterable[Instance],
    path: str | Path,
    format: Format = "prompt_completion",
    text: TextConfig | None = None,
    infer_answers: bool = True,
) -> ExportCounts:
    r"""Write one row of JSONL for each rationale that is there and states an answer; the file appears whole.

    The completion is `reasoning + "\n" + answer_template` with the teacher's own answer. Formats:

    - "prompt_completion": {"prompt", "completion", "id", "teacher", "sample"}. The prompt is the prompt template
      filled in; the completion starts with a space.
    - "messages": {"messages": [user: question, assistant: completion], "id", "teacher", "sample"}.

    Rationales are not cut and none is dropped for its length: the trainer that reads them knows its tokenizer.

    Raises:
        DataError: an unknown format.
        OSError: the file cannot be written.
    """
    make_row = {"prompt_completion": _prompt_completion, "messages": _messages}.get(format)
    if make_row is None:
        raise DataError(f"format must be prompt_completion or messages, got {format!r}; choose one of them")
    text = text or TextConfig()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = missing = unparsed = 0
    with atomic_write(path, keep=True) as file:
        for instance in instances:
            for rationale, found in zip(instance.rationales, answers_of(instance, infer_answers), strict=True):
                if not rationale.text.strip():
                    missing += 1
                    continue
                completion = _completion(found, text)
                if completion is None:
                    unparsed += 1
                    continue
                source = {"id": instance.id, "teacher": rationale.teacher, "sample": rationale.sample}
                file.write(json_line({**make_row(instance.question, completion, text), **source}))
                written += 1
    return ExportCounts(written, missing, unparsed)


def _completion(found: FoundAnswer, text: TextConfig) -> str | None:
    if found.answer is None:
        return None
    return f"{found.reasoning}\n{text.answer_template.replace('{answer}', found.answer)}"


def _prompt_completion(question: str, completion: str, text: TextConfig) -> dict[str, Any]:
    # The space parts the completion from "Answer:"; an empty reasoning leaves the line break to do that.
    space = "" if completion.startswith("\n") else " "
    return {"prompt": text.prompt_template.replace("{question}", question), "completion": space + completion}


def _messages(question: str, completion: str, text: TextConfig) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": completion}]}
