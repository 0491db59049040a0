"""The explorer's data: every problem with its K rationales, packed so that thousands fit into one page.

A problem is a line of base64 over deflated JSON; the browser unpacks the one it shows. base64 also means that no
model text can close a tag. What the page reads (explorer.js):

    index    {"teachers", "scores", "full_colour", "problems": [{"id", "question", "answer", "verdicts", "weights",
             "moved"}, ...]}, verdicts a letter a teacher: r right, w wrong, u unparsed, n not checked, - absent
    problem  {"question", "answer", "epochs", "rationales": [{"teacher", "text", "verdict", "status", "tokens",
             "answer", "weights", "scores", "gains"}, ...]}, weights and scores by epoch, gains by student

Gains are {"start", "lengths", "gains", "thinking"}: where the reasoning starts, the steps' lengths in characters, their
gains in hundredths of a nat, and [start, length] of each thinking expression. Steps whose gain is too small for a
colour have gain 0, and neighbours of that kind are one step.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from compact_distill.report.drawing import clean, spaced
from compact_distill.report.read import UNREADABLE, RunData, UsedProblem, sample_name
from compact_distill.report.trace import Trace
from compact_distill.runs.files import read_jsonl

_EPOCHS = 12  # shown per problem
_UNIT = 100  # gains are stored in hundredths of a nat
_SCALE_PERCENTILE = 97  # of all gains: the colour is full there
_VISIBLE = 0.15  # share of a full colour from which on a gain is coloured; explorer.js has the same


@dataclass(frozen=True)
class Gains:
    """Where beliefs rise: by problem, student and teacher; the size of a gain whose colour is full; damaged lines."""

    steps: dict[str, dict[str, dict[str, dict[str, Any]]]]
    full_colour: float
    damaged: int


@dataclass(frozen=True)
class Explorer:
    """The packed problems, and how many of the run's problems they are."""

    index: str
    problems: str
    shown: int
    total: int
    has_gains: bool

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(self.index) + len(self.problems)


def pack_explorer(run: RunData, gains: Gains, budget: int) -> Explorer | None:
    """Pack as many of the run's problems as fit into `budget` bytes, evenly spaced over them; None without problems."""
    ids = list(dict.fromkeys([*run.problems, *(run.trace.ids if run.trace else ())]))
    if not ids:
        return None
    readings = _readings(run.trace)
    packed = [_pack(_problem(run, name, readings.get(name, []), gains.steps.get(name, {}))) for name in ids]
    entries = [_entry(run, name, readings.get(name, [])) for name in ids]
    names = {
        "teachers": run.teachers,
        "scores": list(run.trace.scores) if run.trace else [],
        "full_colour": gains.full_colour,
    }
    every = 1
    while True:
        index = _pack(names | {"problems": entries[::every]})
        problems = "\n".join(packed[::every])
        found = Explorer(index, problems, len(entries[::every]), len(ids), bool(gains.steps))
        if found.size <= budget or found.shown == 1:
            return found
        every += 1


def _pack(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _readings(trace: Trace | None) -> dict[str, list[int]]:
    """Rows of the trace by problem, at most `_EPOCHS` of each."""
    if trace is None:
        return {}
    rows: dict[str, list[int]] = {name: [] for name in trace.ids}
    for n, problem in enumerate(trace.problem_N.tolist()):
        rows[trace.ids[problem]].append(n)
    return {name: [found[i] for i in spaced(len(found), _EPOCHS)] for name, found in rows.items()}


def _entry(run: RunData, name: str, rows: list[int]) -> dict[str, Any]:
    """A problem's line of the index: what the list shows, searches and sorts by."""
    problem, trace = run.problems.get(name), run.trace
    verdicts = "".join(_sign(run, name, teacher) for teacher in run.teachers)
    weights: list[float | None] = []
    moved = 0.0
    if trace is not None and rows:
        weights = [_rounded(w) for w in trace.weights_NK[rows[-1]]]
        change = np.abs(trace.weights_NK[rows[-1]] - trace.weights_NK[rows[0]])
        moved = float(np.nanmax(change)) if (~np.isnan(change)).any() else 0.0
    question, answer = (problem.question, problem.answer) if problem else ("", "")
    shown = {"id": name, "question": question, "answer": answer, "verdicts": verdicts}
    return {**shown, "weights": weights, "moved": _rounded(moved)}


def _sign(run: RunData, problem: str, teacher: str) -> str:
    rationale = run.rationale(problem, teacher)
    return {"correct": "r", "wrong": "w", None: "n"}.get(rationale.verdict, "u") if rationale else "-"


def _problem(run: RunData, name: str, rows: list[int], gains: dict[str, dict[str, Any]]) -> dict[str, Any]:
    problem, trace = run.problems.get(name), run.trace
    rationales = []
    for k, teacher in enumerate(run.teachers):
        entry: dict[str, Any] = {"teacher": k}
        if trace is not None and rows:
            entry["weights"] = [_rounded(v) for v in trace.weights_NK[rows, k]]
            entry["scores"] = [[_rounded(v) for v in values[rows, k]] for values in trace.scores.values()]
        if (used := run.rationale(name, teacher)) is not None:
            entry |= {key: getattr(used, key) for key in ("text", "verdict", "status", "tokens", "answer")}
        entry["gains"] = {
            student: by_teacher[teacher] for student, by_teacher in gains.items() if teacher in by_teacher
        }
        if used is not None or any(w is not None for w in entry.get("weights", ())):
            rationales.append(entry)
    epochs = [] if trace is None else [_rounded(e) for e in trace.epoch_N[rows]]
    question, answer = (problem.question, problem.answer) if problem else ("", "")
    return {"question": question, "answer": answer, "epochs": epochs, "rationales": rationales}


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def read_gains(run: RunData) -> Gains:
    """The gains of gains.jsonl as the page needs them; none where there is no such file."""
    path = run.path / "gains.jsonl"
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    sample: list[float] = []
    damaged: list[object] = []
    for row in read_jsonl(path, at_damage=damaged.append):
        try:
            name, student = clean(row["id"]), clean(row["student"])
            packed = dict(_packed_gains(row, run.problems.get(name)))
        except UNREADABLE:
            damaged.append(row)
            continue
        found.setdefault(name, {})[student] = packed
        if len(sample) < 1_000_000:
            sample += [abs(g) for steps in packed.values() for g in steps["gains"] if g]
    scale = max(round(float(np.percentile(sample, _SCALE_PERCENTILE)) / _UNIT, 2) if sample else 0.0, 0.01)
    for by_student in found.values():
        for by_teacher in by_student.values():
            for packed in by_teacher.values():
                _merge(packed, scale * _UNIT * _VISIBLE)
    return Gains(found, scale, len(damaged))


def _merge(steps: dict[str, Any], least: float) -> None:
    """Set gains below `least` to 0, and make neighbours of that kind one step."""
    lengths: list[int] = []
    gains: list[int] = []
    for length, gain in zip(steps["lengths"], steps["gains"], strict=True):
        gain = gain if abs(gain) >= least else 0
        if gains and not gain and not gains[-1]:
            lengths[-1] += length
        else:
            lengths.append(length)
            gains.append(gain)
    steps |= {"lengths": lengths, "gains": gains}


def _packed_gains(row: dict[str, Any], problem: UsedProblem | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(teacher, gains) of a line; rationales whose steps reach beyond their text are left out."""
    for entry in row["rationales"]:
        if entry is None:
            continue
        teacher = sample_name(entry)
        used = problem.rationales.get(teacher) if problem else None
        ends = [int(end) for end in entry["ends"]]
        start = int(entry["start"])
        if used is None or len(ends) != len(entry["gains"]) or (ends and not start <= ends[-1] <= len(used.text)):
            continue
        yield (
            teacher,
            {
                "start": start,
                "lengths": [end - before for before, end in zip([start, *ends], ends, strict=False)],
                "gains": [round(float(gain) * _UNIT) for gain in entry["gains"]],
                "thinking": [[int(a), int(b) - int(a)] for a, b in entry["thinking"]],
            },
        )
