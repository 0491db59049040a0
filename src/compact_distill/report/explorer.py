"""The explorer's data: every problem with its K rationales, packed so that thousands fit into one page.

A problem is a line of base64 over deflated JSON; the browser unpacks the one it shows. base64 also means that no
model text can close a tag. What the page reads (explorer.js):

    index    {"teachers", "scores", "scale", "problems": [[id, question, answer, verdicts, weights, moved], ...]}
    problem  {"q", "a", "e": epochs, "r": [{"k", "x", "v", "s", "n", "a", "w", "c", "g"}, ...]}

k teacher, x text, v verdict, s status, n tokens, a answer, w weights and c scores per epoch, g gains by student:
[start, belief, lengths of the steps, gains in hundredths of a nat, thinking spans as start, length, ...]. Steps whose
gain is too small for a colour have gain 0, and neighbours of that kind are one step.
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

from compact_distill.report.figures.drift import spaced
from compact_distill.report.read import RunData, UsedProblem, read_rows
from compact_distill.report.text import clean
from compact_distill.report.trace import Trace

_EPOCHS = 12  # shown per problem
_UNIT = 100  # gains are stored in hundredths of a nat
_SCALE_PERCENTILE = 97  # of all gains: the colour is full there
_VISIBLE = 0.15  # share of a full colour from which on a gain is coloured; explorer.js has the same

Gains = dict[str, dict[str, Any]]  # by "before" or "after", then teacher


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


def pack_explorer(run: RunData, budget: int) -> Explorer | None:
    """Pack as many of the run's problems as fit into `budget` bytes, evenly spaced over them; None without problems."""
    ids = list(dict.fromkeys([*run.problems, *(run.trace.ids if run.trace else ())]))
    if not ids:
        return None
    readings = _readings(run.trace)
    gains, scale = _read_gains(run)
    packed = [_pack(_problem(run, name, readings.get(name, []), gains.get(name, {}))) for name in ids]
    entries = [_entry(run, name, readings.get(name, [])) for name in ids]
    names = {"teachers": run.teachers, "scores": list(run.trace.scores) if run.trace else [], "scale": scale}
    every = 1
    while True:
        index = _pack(names | {"problems": entries[::every]})
        problems = "\n".join(packed[::every])
        found = Explorer(index, problems, len(entries[::every]), len(ids), bool(gains))
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


def _entry(run: RunData, name: str, rows: list[int]) -> list[Any]:
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
    return [name, question, answer, verdicts, weights, _rounded(moved)]


def _sign(run: RunData, problem: str, teacher: str) -> str:
    """r right, w wrong, u unparsed, n not checked, - absent."""
    found = run.problems.get(problem)
    rationale = found.rationales.get(teacher) if found else None
    if rationale is None:
        return "-"
    return {"correct": "r", "wrong": "w", None: "n"}.get(rationale.verdict, "u")


def _problem(run: RunData, name: str, rows: list[int], gains: Gains) -> dict[str, Any]:
    problem, trace = run.problems.get(name), run.trace
    rationales = []
    for k, teacher in enumerate(run.teachers):
        entry: dict[str, Any] = {"k": k}
        if trace is not None and rows:
            entry["w"] = [_rounded(v) for v in trace.weights_NK[rows, k]]
            entry["c"] = [[_rounded(v) for v in values[rows, k]] for values in trace.scores.values()]
        used = problem.rationales.get(teacher) if problem else None
        if used is not None:
            entry |= {"x": used.text, "v": used.verdict, "s": used.status, "n": used.tokens, "a": used.answer}
        entry["g"] = {student: by_teacher[teacher] for student, by_teacher in gains.items() if teacher in by_teacher}
        if used is not None or any(w is not None for w in entry.get("w", ())):
            rationales.append(entry)
    epochs = [] if trace is None else [_rounded(e) for e in trace.epoch_N[rows]]
    question, answer = (problem.question, problem.answer) if problem else ("", "")
    return {"q": question, "a": answer, "e": epochs, "r": rationales}


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _read_gains(run: RunData) -> tuple[dict[str, Gains], float]:
    """Gains by problem, packed, and the size of a gain whose colour is full."""
    path = run.path / "gains.jsonl"
    found: dict[str, Gains] = {}
    sample: list[float] = []
    damaged = 0
    for row in read_rows(path) if path.exists() else ():
        try:
            name, student = clean(row["id"]), clean(row["student"])  # type: ignore[index]
            packed = dict(_packed_gains(row, run.problems.get(name)))  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError, IndexError):
            damaged += 1
            continue
        found.setdefault(name, {})[student] = packed
        if len(sample) < 1_000_000:
            sample += [abs(g) for gains in packed.values() for g in gains[3] if g]
    if damaged:
        run.missing.append(f"gains.jsonl has {damaged} damaged lines, left out")
    scale = max(round(float(np.percentile(sample, _SCALE_PERCENTILE)) / _UNIT, 2) if sample else 0.0, 0.01)
    for by_student in found.values():
        for by_teacher in by_student.values():
            for packed in by_teacher.values():
                packed[2:4] = _merged(packed[2], packed[3], scale * _UNIT * _VISIBLE)
    return found, scale


def _merged(lengths: list[int], gains: list[int], least: float) -> tuple[list[int], list[int]]:
    """Steps with gains below `least` set to 0, neighbours of that kind made one."""
    kept_lengths: list[int] = []
    kept: list[int] = []
    for length, gain in zip(lengths, gains, strict=True):
        gain = gain if abs(gain) >= least else 0
        if kept and not gain and not kept[-1]:
            kept_lengths[-1] += length
        else:
            kept_lengths.append(length)
            kept.append(gain)
    return kept_lengths, kept


def _packed_gains(row: dict[str, Any], problem: UsedProblem | None) -> Iterator[tuple[str, list[Any]]]:
    """(teacher, packed gains) of a line; rationales whose steps reach beyond their text are left out."""
    for entry in row["rationales"]:
        if entry is None:
            continue
        sample = int(entry.get("sample") or 0)
        teacher = clean(entry["teacher"]) + (f"#{sample}" if sample else "")
        used = problem.rationales.get(teacher) if problem else None
        ends = [int(end) for end in entry["ends"]]
        start = int(entry["start"])
        if used is None or len(ends) != len(entry["gains"]) or (ends and not start <= ends[-1] <= len(used.text)):
            continue
        lengths = [end - before for before, end in zip([start, *ends], ends, strict=False)]
        thinking = [int(v) for a, b in entry["thinking"] for v in (a, b - a)]
        gains = [round(float(gain) * _UNIT) for gain in entry["gains"]]
        yield teacher, [start, round(float(entry["belief"]), 3), lengths, gains, thinking]
