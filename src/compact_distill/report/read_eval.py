"""The files of `eval/` (docs/evaluation.md) as the report needs them. What cannot be read is listed, never fatal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact_distill.report.text import clean


@dataclass(frozen=True, slots=True)
class Result:
    """One student on one task: `eval/STUDENT/TASK.json`."""

    student: str
    task: str
    role: str | None
    rows: int
    samples: int
    accuracy: float
    low: float
    high: float
    unparsed: int
    truncated: int
    attempts: int
    epoch: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """Base against student on the same rows: one of `eval/changes.json`."""

    task: str
    role: str | None
    rows: int
    before: float
    after: float
    difference: float
    low: float
    high: float
    gained: int | None
    lost: int | None
    mcnemar_p: float | None


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """How far one layer's states moved; shifts are over the base's own spread, None where it is 0."""

    layer: int
    centroid_shift: float | None
    row_shift: float | None
    centroid_distance: float
    row_distance: float
    cka: float | None


@dataclass(frozen=True, slots=True)
class DriftSet:
    """Drift on the prompts of one role. `base` and `student`: [layer][row] = (x, y)."""

    role: str
    rows: int
    kl_last: tuple[float, float, float]
    kl_prompt: tuple[float, float, float]
    layers: list[LayerDrift]
    ids: list[str]
    base: list[list[tuple[float, float]]]
    student: list[list[tuple[float, float]]]


def _json(path: Path, holds: str, missing: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"eval/{path.name} is missing: no {holds}")
        return {}
    except (ValueError, OSError) as error:
        missing.append(f"eval/{path.name} cannot be read ({clean(error)}): no {holds}")
        return {}
    if not isinstance(value, dict):
        missing.append(f"eval/{path.name} holds no object: no {holds}")
        return {}
    return value


def read_results(folder: Path, missing: list[str]) -> tuple[list[Result], list[Change]]:
    """Results of all students and the comparison of base and student; what is wrong goes to `missing`."""
    results = []
    for path in sorted(folder.glob("*/*.json")) if folder.is_dir() else ():
        try:
            results.append(_result(path.parent.name, json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError, OSError):
            missing.append(f"eval/{clean(path.parent.name)}/{clean(path.name)} cannot be read, left out")
    if not results:
        missing.append("eval/ holds no results: whether the student got better is unknown; run `compact eval`")
        return [], []
    return results, read_changes(_json(folder / "changes.json", "comparison of before and after", missing), missing)


def read_changes(document: Mapping[str, Any], missing: list[str]) -> list[Change]:
    """The comparisons of a changes.json; what is wrong goes to `missing`."""
    changes = []
    for entry in document.get("changes", ()):
        try:
            changes.append(_change(entry))
        except (KeyError, TypeError, ValueError):
            missing.append("eval/changes.json holds an entry that cannot be read, left out")
    return changes


def _result(student: str, row: dict[str, Any]) -> Result:
    result, epoch = row["result"], row["student"].get("epoch")
    if result["accuracy"] is None:
        raise ValueError("no attempts")
    return Result(
        student=clean(student),
        task=clean(row["task"]["name"]),
        role=None if row.get("role") is None else clean(row["role"]),
        rows=int(result["rows"]),
        samples=int(result["samples"]),
        accuracy=float(result["accuracy"]),
        low=float(result["low"]),
        high=float(result["high"]),
        unparsed=int(result["verdicts"].get("unparsed", 0)) + int(result["verdicts"].get("timed_out", 0)),
        truncated=int(result["truncated"]),
        attempts=int(result["attempts"]),
        epoch=None if epoch is None else float(epoch),
    )


def _change(row: dict[str, Any]) -> Change:
    def count(key: str) -> int | None:
        return None if row.get(key) is None else int(row[key])

    return Change(
        task=clean(row["task"]),
        role=None if row.get("role") is None else clean(row["role"]),
        rows=int(row["rows"]),
        before=float(row["before"]["accuracy"]),
        after=float(row["after"]["accuracy"]),
        difference=float(row["difference"]),
        low=float(row["low"]),
        high=float(row["high"]),
        gained=count("gained"),
        lost=count("lost"),
        mcnemar_p=None if row.get("mcnemar_p") is None else float(row["mcnemar_p"]),
    )


def read_drift(path: Path, missing: list[str]) -> list[DriftSet]:
    """The sets of drift.json; what is wrong goes to `missing`."""
    sets = []
    for entry in _json(path, "drift", missing).get("sets", ()):
        try:
            sets.append(_drift_set(entry))
        except (KeyError, TypeError, ValueError):
            missing.append("eval/drift.json holds a set that cannot be read, left out")
    return sets


def _drift_set(row: dict[str, Any]) -> DriftSet:
    def interval(key: str) -> tuple[float, float, float]:
        return (float(row[key]["mean"]), float(row[key]["low"]), float(row[key]["high"]))

    def clouds(key: str) -> list[list[tuple[float, float]]]:
        return [[(float(x), float(y)) for x, y in layer] for layer in row["plane"][key]]

    def maybe(value: Any) -> float | None:
        return None if value is None else float(value)

    return DriftSet(
        role=clean(row["role"]),
        rows=int(row["rows"]),
        kl_last=interval("kl_last"),
        kl_prompt=interval("kl_prompt"),
        layers=[
            LayerDrift(
                int(layer["layer"]),
                maybe(layer["centroid_shift"]),
                maybe(layer["row_shift"]),
                float(layer["centroid_distance"]),
                float(layer["row_distance"]),
                maybe(layer["cka"]),
            )
            for layer in row["layers"]
        ],
        ids=[clean(name) for name in row["plane"]["ids"]],
        base=clouds("base"),
        student=clouds("student"),
    )
