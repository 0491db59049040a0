"""A run folder as the report needs it. Nothing here is fatal: what is missing or damaged is listed in `missing`.

The formats are those of docs/report.md and, for `eval/`, docs/evaluation.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import yaml
from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass as checked

from compact_distill.errors import InputError, RunError
from compact_distill.records import LESS_IS_BETTER
from compact_distill.report.drawing import UNITS, clean, plural
from compact_distill.report.html import content_stamp
from compact_distill.report.trace import Trace, arrange_trace
from compact_distill.runs.files import read_jsonl
from compact_distill.runs.folder import RunFolder

_Made = TypeVar("_Made")
# What comes of values that are not of the kind a file of ours has.
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)
RIGHT, WRONG = "correct", "wrong"  # verdicts
_KNOWN = ("manifest.json", "config.yaml", "data.jsonl", "scores.jsonl", "training_log.jsonl", "gains.jsonl", "eval")
_PAID = ("prompt_tokens", "completion_tokens", "cost")
READ = (*_KNOWN[:-1], "rationales/*.jsonl", "eval/*.json", "eval/*/*.json")  # of a run folder
Text = Annotated[str, BeforeValidator(lambda value: clean("" if value is None else value))]


@checked(frozen=True, slots=True)
class UsedRationale:
    """One rationale of data.jsonl; `tokens` is None where it took no part."""

    teacher: Text
    text: Text = ""
    answer: Text | None = None
    verdict: Text | None = None
    status: Annotated[Text, BeforeValidator(lambda value: value or "ok")] = "ok"
    tokens: int | None = None


@checked(frozen=True, slots=True)
class UsedProblem:
    """One problem of data.jsonl, its rationales by the teacher's name (`name#1` for a second sample)."""

    id: Text
    question: Text
    answer: Text
    rationales: dict[str, UsedRationale]


@checked(frozen=True, slots=True)
class TaskResult:
    """One student on one task by one measure: of `eval/STUDENT/TASK.json`; `main` marks the measure that counts."""

    student: Text
    task: Text
    role: Text | None
    rows: int
    value: float
    low: float
    high: float
    unparsed: int
    truncated: int
    epoch: float | None = None
    metric: Text = "accuracy"
    main: bool = True


@checked(frozen=True, slots=True)
class PairedChange:
    """Base against student on the same rows by one measure; `difference` is after minus before."""

    task: Text
    role: Text | None
    rows: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    gained: int | None = None
    lost: int | None = None
    mcnemar_p: float | None = None
    metric: Text = "accuracy"
    main: bool = True

    @property
    def unchanged(self) -> bool:
        """Whether no row's answer turned right or wrong; resampling then cannot say what other rows might do."""
        return self.gained == self.lost == 0

    @property
    def better(self) -> bool:
        """Whether the interval shows that the student became better."""
        return self.high < 0 if self.metric in UNITS else self.low > 0

    @property
    def worse(self) -> bool:
        """Whether the interval shows that the student became worse."""
        return self.low > 0 if self.metric in UNITS else self.high < 0


@checked(frozen=True, slots=True)
class LayerDrift:
    """How far one layer's states moved; shifts are over the base's own spread, None where it is 0."""

    layer: int
    centroid_shift: float | None
    row_shift: float | None
    centroid_distance: float
    row_distance: float
    cka: float | None = None


@checked(frozen=True, slots=True)
class DriftSet:
    """Drift on the prompts of one role. `base` and `student`: [layer][row] = (x, y); KL as mean, low, high."""

    role: Text
    kl_last: tuple[float, float, float]
    kl_prompt: tuple[float, float, float]
    layers: list[LayerDrift]
    ids: list[Text]
    base: list[list[tuple[float, float]]]
    student: list[list[tuple[float, float]]]


@dataclass(frozen=True)
class RunData:
    """Everything that the report shows of one run, what it could not find, and the `content_stamp` of it all."""

    path: Path
    name: str
    manifest: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    problems: dict[str, UsedProblem] = field(default_factory=dict)
    trace: Trace | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    results: list[TaskResult] = field(default_factory=list)
    changes: list[PairedChange] = field(default_factory=list)
    drift: list[DriftSet] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    stamp: str = ""

    @cached_property
    def title(self) -> str:
        """What people call the run: its folder's name; in a study, where that is the seed alone, with its arm."""
        arms, arm, seed = ("", "", "", *self.path.resolve().parts)[-3:]
        return clean(f"{arm}, {seed}") if arms == "arms" else self.name

    @cached_property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers in the order in which they first appear; their colours follow it."""
        if self.trace is not None:
            return self.trace.teachers
        return tuple(dict.fromkeys(name for problem in self.problems.values() for name in problem.rationales))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration's values; none where it is missing or damaged."""
        try:
            found = yaml.safe_load(self.config)
        except yaml.YAMLError:
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def trained_on(self) -> dict[str, list[str]]:
        """The problems that were trained on, each with the teachers whose rationale had weight in some reading.

        Without a trace, these are all rationales that take part.
        """
        if (trace := self.trace) is None:
            found = {key: problem.rationales.items() for key, problem in self.problems.items()}
            used = {key: [name for name, r in own if r.status == "ok"] for key, own in found.items()}
        else:
            columns = [np.flatnonzero(trained_K) for trained_K in trace.trained_PK]
            used = {name: [trace.teachers[k] for k in own] for name, own in zip(trace.ids, columns, strict=True)}
        return {name: teachers for name, teachers in used.items() if teachers}

    @cached_property
    def taught(self) -> list[str]:
        """Names of the teachers of whom a rationale was trained on, in the order of `teachers`."""
        found = {name for teachers in self.trained_on.values() for name in teachers}
        return [name for name in self.teachers if name in found]

    @property
    def answers_alone(self) -> bool:
        """Whether its rationales are answers without reasoning, such as translations."""
        text = self.settings.get("text")
        return isinstance(text, dict) and text.get("rationale") == "answer"

    @cached_property
    def less_is_better(self) -> set[str]:
        """Names of the scores of which less is better: the built-in ones, and what the manifest says of others."""
        named = self.manifest.get("less_is_better")
        return {*LESS_IS_BETTER, *(map(str, named) if isinstance(named, list) else ())}

    @property
    def questions(self) -> int:
        """How many problems were trained on: fewer than the examples in a plain mix (`example: rationale`)."""
        return len({self.problems[name].question for name in self.trained_on if name in self.problems})

    def rationales(self, teacher: str = "") -> Iterator[UsedRationale]:
        """All rationales of data.jsonl, or one teacher's."""
        for problem in self.problems.values():
            yield from (r for name, r in problem.rationales.items() if teacher in ("", name))

    def rationale(self, problem: str, teacher: str) -> UsedRationale | None:
        """What a teacher wrote for a problem, or None where data.jsonl does not have it."""
        found = self.problems.get(problem)
        return found.rationales.get(teacher) if found else None


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
    stamp = content_stamp(path, READ)  # first, so that a page never claims to be newer than it is
    try:
        run = RunFolder.open(path)
    except RunError as error:
        missing.append(f"manifest.json cannot be used, so times and versions are unknown: {clean(error)}")
        run = RunFolder(path, None, {})
    problems = {p.id: p for p in _lines(run.data_path, "texts, verdicts, lengths", _problem, missing)}
    named = dict.fromkeys(name for problem in problems.values() for name in problem.rationales)
    trace = arrange_trace(_lines(run.scores_path, "weights and scores", dict, missing), named)
    log = _lines(run.training_log_path, "losses, throughput, memory", dict, missing)
    config = clean(run.config_path.read_text(encoding="utf-8", errors="replace")) if run.config_path.is_file() else ""
    if not run.config_path.is_file():
        missing.append("config.yaml is missing: the settings are unknown")
    if not run.gains_path.exists():
        missing.append("gains.jsonl is missing: the explorer shows no gains in the texts")
    results = _results(run.eval_path, missing)
    gaps = missing if run.eval_path.is_dir() else []  # where nothing was examined, the line above is enough
    changes = read_changes(_json(run.eval_path / "changes.json", "comparison of before and after", gaps), missing)
    drift = _json(run.eval_path / "drift.json", "drift", gaps).get("sets", ())
    data = RunData(
        path=path,
        name=clean(path.resolve().name),
        manifest=run.manifest,
        config=config,
        problems=problems,
        trace=trace,
        log=log,
        results=results,
        changes=changes if results else [],
        drift=_entries(drift, _drift_set, "eval/drift.json holds a set", missing),
        costs=_costs(run.rationales_path),
        missing=missing,
        stamp=stamp,
    )
    if data.manifest and not data.manifest.get("finished"):
        missing.insert(0, "the run has not finished; this is what there is so far")
    if data.problems and not any(r.verdict for r in data.rationales()):
        missing.append("data.jsonl holds no verdicts, so right and wrong rationales cannot be told apart")
    return data


def _each(rows: Iterable[Any], make: Callable[[Any], _Made], damaged: list[Any]) -> Iterator[_Made]:
    """What `make` makes of each row; rows that are not of their kind go to `damaged`."""
    for row in rows:
        try:
            yield make(row)
        except UNREADABLE:
            damaged.append(row)


def _lines(path: Path, holds: str, make: Callable[[dict[str, Any]], _Made], missing: list[str]) -> list[_Made]:
    damaged: list[Any] = []
    found = list(_each(read_jsonl(path, at_damage=damaged.append), make, damaged))
    if not path.exists():
        missing.append(f"{path.name} is missing: no {holds}")
    elif damaged:
        missing.append(f"{path.name} has {plural(len(damaged), 'damaged line')}, left out")
    elif not found:
        missing.append(f"{path.name} is empty: no {holds}")
    return found


def _problem(row: dict[str, Any]) -> UsedProblem:
    rationales = {(name := sample_name(r)): UsedRationale(**{**r, "teacher": name}) for r in row.get("rationales", ())}
    return UsedProblem(row["id"], row.get("question", ""), row.get("answer", ""), rationales)


def sample_name(entry: Mapping[str, Any]) -> str:
    """The name of a rationale's column: its teacher, with `#1` behind it for a second sample."""
    sample = int(entry.get("sample") or 0)
    return clean(entry["teacher"]) + (f"#{sample}" if sample else "")


def _costs(folder: Path) -> dict[str, float]:
    """What the stores say was paid: answers, tokens in and out, money where it is known; empty without any."""
    total: dict[str, float] = {}
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        for row in read_jsonl(path, at_damage=lambda line: None):
            paid = {key: value for key in _PAID if isinstance(value := row.get(key), int | float)}
            for key, value in {"answers": 1, "prompt_tokens": 0, "completion_tokens": 0, **paid}.items():
                total[key] = total.get(key, 0.0) + value
    return total


# ---- eval/


def _json(path: Path, holds: str, missing: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        why = "" if isinstance(value, dict) else "holds no object"
    except FileNotFoundError:
        why = "is missing"
    except (*UNREADABLE, OSError) as error:
        why = f"cannot be read ({clean(error)})"
    if why:
        missing.append(f"eval/{path.name} {why}: no {holds}")
    return {} if why else value


def _results(folder: Path, missing: list[str]) -> list[TaskResult]:
    results = []
    for path in sorted(folder.glob("*/*.json")) if folder.is_dir() else ():
        try:
            results.extend(_result(path.parent.name, json.loads(path.read_text(encoding="utf-8"))))
        except (*UNREADABLE, OSError):
            missing.append(f"eval/{clean(path.parent.name)}/{clean(path.name)} cannot be read, left out")
    if not results:
        remedy = "name benchmarks under `eval:` and run `compact eval`"
        missing.append(f"eval/ holds no results: whether the student got better is unknown; {remedy}")
    return results


def _entries(rows: Any, make: Callable[[Any], _Made], what: str, missing: list[str]) -> list[_Made]:
    damaged: list[Any] = []
    found = list(_each(rows if isinstance(rows, list | tuple) else [rows], make, damaged))
    missing += [f"{what} that cannot be read, left out"] * len(damaged)
    return found


def read_changes(document: Mapping[str, Any], missing: list[str]) -> list[PairedChange]:
    """The comparisons of a changes.json; what is wrong goes to `missing`."""
    found = _entries(document.get("changes", ()), _change, "eval/changes.json holds an entry", missing)
    return [change for measures in found for change in measures]


def _result(student: str, row: dict[str, Any]) -> list[TaskResult]:
    result, verdicts = row["result"], row["result"]["verdicts"]
    unread = int(verdicts.get("unparsed", 0)) + int(verdicts.get("timed_out", 0))
    shared = {"student": student, "task": row["task"]["name"], "role": row.get("role"), "rows": result["rows"]}
    shared |= {"unparsed": unread, "truncated": result.get("truncated") or 0, "epoch": row["student"].get("epoch")}
    return [
        TaskResult(**{**measure, **shared, "metric": name, "main": name == result["metric"]})
        for name, measure in result["metrics"].items()
    ]


def _change(row: dict[str, Any]) -> list[PairedChange]:
    shared = {"task": row["task"], "role": row.get("role"), "rows": row["rows"]}
    found = []
    for name, measure in row["metrics"].items():
        ends = {when: measure[when]["value"] for when in ("before", "after")}
        found.append(PairedChange(**{**measure, **ends, **shared, "metric": name, "main": name == row["metric"]}))
    return found


def _drift_set(row: dict[str, Any]) -> DriftSet:
    ends = {key: [row[key][end] for end in ("mean", "low", "high")] for key in ("kl_last", "kl_prompt")}
    return DriftSet(**{**row, **row["plane"], **ends})
