"""A run folder as the report needs it. Nothing here is fatal: what is missing or damaged is listed in `missing`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from compact_distill.errors import InputError, RunError
from compact_distill.report.read_eval import Change, DriftSet, Result, read_drift, read_results
from compact_distill.report.text import clean, plural
from compact_distill.report.trace import Trace, arrange_trace
from compact_distill.runs.folder import RunFolder

_Made = TypeVar("_Made")
_KNOWN = ("manifest.json", "config.yaml", "data.jsonl", "scores.jsonl", "training_log.jsonl", "gains.jsonl", "eval")


@dataclass(frozen=True, slots=True)
class UsedRationale:
    """One rationale of data.jsonl; `tokens` is None where it took no part."""

    teacher: str
    text: str
    answer: str | None
    verdict: str | None
    status: str
    tokens: int | None


@dataclass(frozen=True, slots=True)
class UsedProblem:
    """One problem of data.jsonl, its rationales by the teacher's name (`name#1` for a second sample)."""

    id: str
    question: str
    answer: str
    prompt_tokens: int | None
    rationales: dict[str, UsedRationale]


@dataclass(frozen=True)
class RunData:
    """Everything that the report shows of one run, and what it could not find."""

    path: Path
    name: str
    manifest: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    problems: dict[str, UsedProblem] = field(default_factory=dict)
    trace: Trace | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    drift: list[DriftSet] = field(default_factory=list)
    teacher_costs: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers in the order in which they first appear; their colours follow it."""
        if self.trace is not None:
            return self.trace.teachers
        return tuple(dict.fromkeys(name for problem in self.problems.values() for name in problem.rationales))

    def verdict(self, problem: str, teacher: str) -> str | None:
        """Verdict of a rationale, or None where nobody knows it."""
        found = self.problems.get(problem)
        rationale = found.rationales.get(teacher) if found else None
        return rationale.verdict if rationale else None

    def seconds(self) -> dict[str, float]:
        """Duration of each finished stage."""
        stages = self.manifest.get("stages")
        durations = {}
        for name, record in stages.items() if isinstance(stages, dict) else ():
            try:
                start, end = (datetime.datetime.fromisoformat(record[key]) for key in ("started", "finished"))
                durations[clean(name)] = (end - start).total_seconds()
            except (KeyError, TypeError, ValueError):  # it has not finished, or another version wrote it
                continue
        return durations


def read_run(path: str | Path) -> RunData:
    """Read a run folder, whole or half written.

    Raises:
        InputError: the path is no folder, or holds no file of a run at all.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path} must be a run folder, but there is no such folder; `compact run` makes one")
    if not any((path / name).exists() for name in _KNOWN):
        raise InputError(f"{path} must be a run folder, but holds none of {', '.join(_KNOWN)}; `compact run` makes one")
    missing: list[str] = []
    run = _open(path, missing)
    problems = {p.id: p for p in _rows(run.data_path, "texts, verdicts, lengths", _problem, missing)}
    named = dict.fromkeys(name for problem in problems.values() for name in problem.rationales)
    trace = arrange_trace(_rows(run.scores_path, "weights and scores", _as_it_is, missing), named)
    log = list(_rows(run.training_log_path, "losses, throughput, memory", _as_it_is, missing))
    if not run.gains_path.exists():
        missing.append("gains.jsonl is missing: the explorer shows no gains in the texts")
    results, changes = read_results(run.eval_path, missing)
    name = clean(path.resolve().name)
    data = RunData(
        path=path,
        name=name,
        manifest=run.manifest,
        config=_config(run.config_path, missing),
        problems=problems,
        trace=trace,
        log=log,
        results=results,
        changes=changes,
        drift=read_drift(run.eval_path / "drift.json", missing),
        teacher_costs=_costs(run.rationales_path),
        missing=missing,
    )
    _note_unfinished(data)
    return data


def _open(path: Path, missing: list[str]) -> RunFolder:
    try:
        return RunFolder.open(path)
    except RunError as error:
        missing.append(f"manifest.json cannot be used, so times and versions are unknown: {clean(error)}")
        return RunFolder(path, None, {})


def _note_unfinished(data: RunData) -> None:
    if data.manifest and not data.manifest.get("finished"):
        data.missing.insert(0, "the run has not finished; this is what there is so far")
    if data.problems and not any(r.verdict for p in data.problems.values() for r in p.rationales.values()):
        data.missing.append("data.jsonl holds no verdicts, so right and wrong rationales cannot be told apart")


def read_rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """Objects of a JSONL file, None for a damaged line; a last line without its end does not count."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield row if isinstance(row, dict) else None


def _rows(path: Path, holds: str, make: Callable[[dict[str, Any]], _Made], missing: list[str]) -> Iterator[_Made]:
    if not path.exists():
        missing.append(f"{path.name} is missing: no {holds}")
        return
    damaged = count = 0
    for row in read_rows(path):
        try:
            made = make(row) if row is not None else None
        except (KeyError, TypeError, ValueError, AttributeError):
            made = None
        if made is None:
            damaged += 1
        else:
            count += 1
            yield made
    if damaged:
        missing.append(f"{path.name} has {plural(damaged, 'damaged line')}, left out")
    elif not count:
        missing.append(f"{path.name} is empty: no {holds}")


def _as_it_is(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _problem(row: dict[str, Any]) -> UsedProblem:
    rationales = {}
    for entry in row.get("rationales", ()):
        sample = int(entry.get("sample") or 0)
        teacher = clean(entry["teacher"]) + (f"#{sample}" if sample else "")
        rationales[teacher] = UsedRationale(
            teacher=teacher,
            text=clean(entry.get("text") or ""),
            answer=None if entry.get("answer") is None else clean(entry["answer"]),
            verdict=None if entry.get("verdict") is None else clean(entry["verdict"]),
            status=clean(entry.get("status") or "ok"),
            tokens=None if entry.get("tokens") is None else int(entry["tokens"]),
        )
    tokens = row.get("prompt_tokens")
    return UsedProblem(
        clean(row["id"]),
        clean(row.get("question", "")),
        clean(row.get("answer", "")),
        None if tokens is None else int(tokens),
        rationales,
    )


def _config(path: Path, missing: list[str]) -> str:
    try:
        return clean(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        missing.append("config.yaml is missing: the settings are unknown")
        return ""


def _costs(folder: Path) -> dict[str, dict[str, float]]:
    """What each teacher's store says was paid: answers, tokens in and out, money where it is known."""
    totals: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        for row in read_rows(path):
            if row is None:
                continue
            total = totals.setdefault(
                clean(row.get("teacher", path.stem)),
                dict.fromkeys(("answers", "prompt_tokens", "completion_tokens"), 0.0),
            )
            total["answers"] += 1
            for key in ("prompt_tokens", "completion_tokens", "cost"):
                value = row.get(key)
                if isinstance(value, int | float):
                    total[key] = total.get(key, 0.0) + value
    return totals
