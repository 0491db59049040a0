"""The explorer's data: every problem with its K rationales, packed so that thousands fit into one page.

A problem is a line of base64 over deflated JSON; the browser unpacks the one it shows. base64 also means that no
model text can close a tag. What the page reads (explorer.js):

    index    {"teachers", "scores", "full_colour", "problems": [{"id", "question", "answer", "verdicts", "weights",
             "moved"}, ...]}, verdicts a letter a teacher: r right, w wrong, u unparsed, n not checked, - absent
    problem  {"question", "answer", "epochs", "rationales": [{"teacher", "text", "verdict", "status", "tokens",
             "answer", "weights", "scores", "gains"}, ...]}, weights and scores by epoch, gains by student

Gains are {"lengths", "gains", "thinking"} of the pieces that the text is cut into up to its last step: UTF-16 units, as
JavaScript counts; hundredths of a nat, 0 where a gain is too small for a colour; 1 in a thinking expression.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from compact_distill.report.drawing import clean, spaced
from compact_distill.report.read import UNREADABLE, RunData, UsedProblem, UsedRationale, sample_name
from compact_distill.report.trace import Trace
from compact_distill.runs.files import read_jsonl

_EPOCHS = 12  # shown per problem
_UNIT = 100  # gains are stored in hundredths of a nat
_SCALE_PERCENTILE = 97  # of all gains: the colour is full there
_VISIBLE = 0.15  # share of a full colour from which on a gain is coloured
_SIGNS = {"correct": "r", "wrong": "w", None: "n"}


@dataclass(frozen=True)
class Gains:
    """Where beliefs rise: pieces by problem and teacher, then student; the gain whose colour is full; damaged lines."""

    pieces: dict[tuple[str, str], dict[str, dict[str, list[int]]]]
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
    readings = _readings(run.trace) if run.trace else {}
    problems = [(run.problems.get(name) or UsedProblem(name, "", "", {}), readings.get(name, [])) for name in ids]
    packed = [_pack(_problem(run, problem, rows, gains)) for problem, rows in problems]
    entries = [_entry(run, problem, rows) for problem, rows in problems]
    scores = list(run.trace.scores) if run.trace else []
    names = {"teachers": run.teachers, "scores": scores, "full_colour": gains.full_colour}
    every = 1
    while True:
        index = _pack(names | {"problems": entries[::every]})
        shown = packed[::every]
        found = Explorer(index, "\n".join(shown), len(shown), len(ids), bool(gains.pieces))
        if found.size <= budget or found.shown == 1:
            return found
        every += 1


def _pack(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _readings(trace: Trace) -> dict[str, list[int]]:
    """Rows of the trace at which each problem was read, at most `_EPOCHS`."""
    rows: dict[str, list[int]] = {}
    for n, problem in enumerate(trace.problem_N.tolist()):
        rows.setdefault(trace.ids[problem], []).append(n)
    return {name: [read[i] for i in spaced(len(read), _EPOCHS)] for name, read in rows.items()}


def _entry(run: RunData, problem: UsedProblem, rows: list[int]) -> dict[str, Any]:
    """A problem's line of the index: what the list shows, searches and sorts by."""
    used = [problem.rationales.get(teacher) for teacher in run.teachers]
    verdicts = "".join(_SIGNS.get(rationale.verdict, "u") if rationale else "-" for rationale in used)
    weights_NK = run.trace.weights_NK[rows] if run.trace and rows else np.empty((1, 0))
    weights, moved = map(_rounded, weights_NK[-1]), np.abs(weights_NK[-1] - weights_NK[0])
    shown = {"id": problem.id, "question": problem.question, "answer": problem.answer, "verdicts": verdicts}
    return {**shown, "weights": list(weights), "moved": _rounded(np.nan_to_num(moved).max(initial=0.0))}


def _problem(run: RunData, problem: UsedProblem, rows: list[int], gains: Gains) -> dict[str, Any]:
    trace, rationales = run.trace, []
    for k, teacher in enumerate(run.teachers):
        entry: dict[str, Any] = {"teacher": k}
        if trace is not None and rows:
            entry["weights"] = [_rounded(v) for v in trace.weights_NK[rows, k]]
            entry["scores"] = [[_rounded(v) for v in values[rows, k]] for values in trace.scores.values()]
        if (used := problem.rationales.get(teacher)) is not None:
            entry |= {key: getattr(used, key) for key in ("text", "verdict", "status", "tokens", "answer")}
        entry["gains"] = gains.pieces.get((problem.id, teacher), {})
        if used is not None or any(w is not None for w in entry.get("weights", ())):
            rationales.append(entry)
    epochs = [] if trace is None else [_rounded(e) for e in trace.epoch_N[rows]]
    return {"question": problem.question, "answer": problem.answer, "epochs": epochs, "rationales": rationales}


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


# ---- gains


@dataclass(frozen=True)
class _Steps:
    """A rationale's steps as gains.jsonl has them: where they start and end, their gains in hundredths of a nat."""

    text: str
    edges: list[int]
    gains: list[int]
    thinking: list[tuple[int, int]]


def read_gains(run: RunData) -> Gains:
    """The gains of gains.jsonl as the page needs them; none where there is no such file."""
    steps: dict[tuple[str, str], dict[str, _Steps]] = {}
    damaged: list[object] = []
    for row in read_jsonl(run.path / "gains.jsonl", at_damage=damaged.append):
        try:
            name, student = clean(row["id"]), clean(row["student"])
            named = [(sample_name(entry), entry) for entry in row["rationales"] if entry is not None]
            found = {teacher: _steps(entry, run.rationale(name, teacher)) for teacher, entry in named}
        except UNREADABLE:
            damaged.append(row)
            continue
        for teacher, own in found.items():
            if own is not None:
                steps.setdefault((name, teacher), {})[student] = own
    sizes = [abs(gain) for by_student in steps.values() for own in by_student.values() for gain in own.gains if gain]
    full = max(round(float(np.percentile(sizes, _SCALE_PERCENTILE)) / _UNIT, 2) if sizes else 0.0, 0.01)
    pieces = {
        place: {student: _pieces(own, full * _UNIT * _VISIBLE) for student, own in by_student.items()}
        for place, by_student in steps.items()
    }
    return Gains(pieces, full, len(damaged))


def _steps(entry: dict[str, Any], used: UsedRationale | None) -> _Steps | None:
    """A rationale's steps; None where they do not lie within its text, one behind the other."""
    edges, gains = [int(entry["start"]), *map(int, entry["ends"])], [float(gain) for gain in entry["gains"]]
    bounds = [0, *edges, len(used.text if used else "")]
    if used is None or bounds != sorted(bounds) or len(gains) != len(edges) - 1:
        return None
    thinking = [(max(int(a), 0), int(b)) for a, b in entry["thinking"]]
    return _Steps(used.text, edges, [round(gain * _UNIT) for gain in gains], thinking)


def _pieces(steps: _Steps, least: float) -> dict[str, list[int]]:
    """The text up to the last step's end, cut where its look changes; gains below `least` are 0."""
    start, end = steps.edges[0], steps.edges[-1]
    codes = np.frombuffer(steps.text[:end].encode("utf-32-le"), dtype=np.uint32)
    sizes = np.diff(steps.edges)
    gains, step, thinking = np.zeros(end), np.zeros(end), np.zeros(end, dtype=int)
    gains[start:] = np.repeat([float(gain) if abs(gain) >= least else 0.0 for gain in steps.gains], sizes)
    step[start:] = np.repeat(np.arange(len(sizes)), sizes) + 1
    for a, b in steps.thinking:
        thinking[a:b] = 1
    # Each coloured step is a piece of its own, since it tells its gain; those without a colour are one.
    look = np.stack([np.where(gains, step, 0), thinking], axis=1)
    cuts = np.flatnonzero(np.r_[True, (look[1:] != look[:-1]).any(1)][:end])
    lengths = np.add.reduceat(1 + (codes > 0xFFFF), cuts) if end else cuts
    coloured = [int(gain) for gain in gains[cuts]]
    return {"lengths": lengths.tolist(), "gains": coloured, "thinking": thinking[cuts].tolist()}
