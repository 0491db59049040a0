"""Result files of evaluations, as docs/evaluation.md defines them: where they are, how read, how compared."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact_distill.errors import RunError
from compact_distill.records import Closing, Verdict
from compact_distill.runs.files import (
    atomic_write,
    content_hash,
    cut_torn_line,
    fingerprint,
    is_aside,
    json_line,
    move_aside,
    read_jsonl,
)
from compact_distill.runs.progress import say
from compact_distill.statistics import (
    RESAMPLES,
    Estimate,
    bootstrap_ratio,
    bounded_mean,
    mcnemar,
    share_of_rows,
)

FORMAT = 1
BASE, STUDENT = "base", "student"
UNITS = {"bits_per_byte": "bits a byte", "nats_per_token": "nats a token"}
CHANGES, DRIFT = "changes.json", "drift.json"


def checkpoint_label(step: int) -> str:
    """Folder of the results after `step` optimizer steps."""
    return f"checkpoint-{step}"


def result_path(folder: str | Path, task: str) -> Path:
    """Where a student's result on a task is; `folder` is the student's, such as RUN/eval/base."""
    return Path(folder) / f"{task}.json"


def rows_path(folder: str | Path, task: str) -> Path:
    """Where the rows that belong to a result are."""
    return Path(folder) / f"{task}.rows.jsonl"


def partial_path(folder: str | Path, task: str) -> Path:
    """Where an evaluation that is not finished keeps what it has."""
    return Path(folder) / f"{task}.partial.jsonl"


def read_result(path: str | Path) -> dict[str, Any]:
    """A result file (also `changes.json` or `drift.json`). Raises RunError where it is damaged or of another format."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(
            f"{path} must be a result of `compact eval`, but cannot be read ({error!r}); evaluate again (it is kept)"
        ) from error
    if found != FORMAT:
        raise RunError(f"{path} must have format {FORMAT}, got {found!r}; evaluate again with this version of compact")
    if document.pop("seal", None) != fingerprint(document):
        raise RunError(f"{path} is not as it was written (its seal does not fit); evaluate again")
    return dict(document)


def write_result(path: str | Path, document: Mapping[str, Any], keep: bool = False) -> None:
    """Write such a file with its seal; it appears whole. Raises ValueError for NaN and infinity.

    With `keep` a file of that name that says something else is moved aside.
    """
    with atomic_write(path, keep) as file:
        json.dump({**document, "seal": fingerprint(document)}, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def whole_result(folder: str | Path, task: str) -> dict[str, Any]:
    """A student's result on a task. Raises RunError where it or its rows are missing or not as they were written."""
    document, rows = read_result(result_path(folder, task)), rows_path(folder, task)
    if not rows.is_file() or document.get("rows_hash") != content_hash(rows):
        raise RunError(f"{rows} is missing or not as it was written (rows_hash does not fit); evaluate again")
    return document


def damage_of_student(folder: Path) -> list[str]:
    """What is wrong with a student's results and their rows, as messages; empty where all are as they were written."""
    wrong = []
    for task in tasks_done(folder):
        try:
            whole_result(folder, task)
        except RunError as error:
            wrong.append(str(error))
    return wrong


def damaged_results(eval_folder: Path) -> list[str]:
    """The same of a run's result files: of all its students, changes and drift."""
    wrong = [problem for folder in student_folders(eval_folder) for problem in damage_of_student(folder)]
    for path in (eval_folder / CHANGES, eval_folder / DRIFT):
        try:
            if path.exists():
                read_result(path)
        except RunError as error:
            wrong.append(str(error))
    return wrong


def student_folders(eval_folder: Path) -> list[Path]:
    """The students' folders below an eval folder, in alphabetical order; not what was moved aside."""
    return sorted(path for path in eval_folder.glob("*") if path.is_dir() and not is_aside(path))


def put_aside(path: Path, why: str) -> None:
    """Move a file or folder aside, where it is there, and say so."""
    if path.exists():
        say(f"{path} is now {move_aside(path).name} ({why}); rename it to take it back")


def read_attempts(path: str | Path) -> list[dict[str, Any]]:
    """The attempts of a result, in order. Raises RunError where the file is missing or a line is no JSON object."""
    if not Path(path).is_file():
        raise RunError(f"{path} is missing; evaluate again")
    return list(read_jsonl(path))


def tasks_done(folder: str | Path) -> list[str]:
    """Names of the tasks with a finished result in a student's folder, in alphabetical order."""
    return sorted(path.stem for path in Path(folder).glob("*.json"))


class Partial(Closing):
    """Replies of an evaluation under way, one a line: what came back, and which request it answers.

    Lines that answer no request (of other settings, or damaged) are not lost: the file is moved aside first.

    Args:
        folder: the student's.
        task: name of the task.
        requests: what identifies each request.
        known: whether replies of finished and earlier evaluations of this task serve too. Only where a reply depends on
            its own request and nothing else; rows name the request they answer then.

    Attributes:
        found: what came back, by index of the request.
    """

    def __init__(self, folder: Path, task: str, requests: Sequence[str], known: bool = False) -> None:
        path = partial_path(folder, task)
        index_of = {request: index for index, request in enumerate(requests)}
        self._requests = requests
        self.found: dict[int, dict[str, Any]] = {}
        cut_torn_line(path)
        lines = _replies(path)
        mine = {index_of[request]: fields for request, fields in lines if request in index_of}
        foreign = len(mine) < len(lines)
        if foreign:
            put_aside(path, "it holds replies to other settings")
        self._file = path.open("a", encoding="utf-8")
        for index, fields in mine.items():
            self._keep(index, fields, write=foreign)
        earlier = [partial_path(folder, task).name, rows_path(folder, task).name] if known else []
        for file in sorted(file for name in earlier for file in folder.glob(f"{glob.escape(name)}*")):
            for request, fields in _replies(file):
                if request in index_of and index_of[request] not in self.found:
                    self.append(index_of[request], fields)

    def append(self, index: int, fields: Mapping[str, Any]) -> None:
        """Keep a reply; it is in the file when this returns (in the system's cache, not yet on disk)."""
        self._keep(index, fields, write=True)

    def _keep(self, index: int, fields: Mapping[str, Any], write: bool) -> None:
        self.found[index] = dict(fields)
        if write:
            self._file.write(json_line({"request": sealed(self._requests[index], fields), **fields}))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def sealed(request: str, fields: Mapping[str, Any]) -> str:
    """A request's identity with a seal of what came back, so that a damaged line answers nothing."""
    return f"{request}:{fingerprint(fields)[:16]}"


def _replies(path: Path) -> list[tuple[str | None, dict[str, Any]]]:
    """(request, what came back) of each line of a partial file or of a rows file; None: damaged, or of no request."""
    damaged: list[object] = []
    found = [_reply(row) for row in read_jsonl(path, at_damage=damaged.append)]
    return [*found, *((None, {}) for _ in damaged)]


def _reply(fields: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    try:
        request, _, _ = (stamp := str(fields.pop("request"))).rpartition(":")
        if "completion_tokens" in fields:  # a row of a finished evaluation
            names = ("text", "finished", "prompt_tokens", "completion_tokens")
            fields = {name.removeprefix("completion_"): fields[name] for name in names}
        whole = stamp == sealed(request, fields)
    except (ValueError, AttributeError, KeyError, TypeError):
        whole = False
    return (request, fields) if whole else (None, {})


@dataclass(frozen=True)
class Measured:
    """One measure, row by row: a share of right answers, or (with `under`) a sum over a sum, such as nats over tokens.

    A share is better where it is large, the other kind where it is small.
    """

    over: tuple[float, ...]
    under: tuple[float, ...] | None = None
    samples: int = 1

    def estimate(self, seed: int) -> Estimate:
        """The value over all rows with its 95 % interval: Wilson's of a share, else a bootstrap over rows."""
        if self.under is None:
            return share_of_rows(self.over, self.samples)
        return bootstrap_ratio(self.over, self.under, seed)

    def change(self, after: Measured, seed: int) -> dict[str, Any] | None:
        """From this student to another one on the same rows; None where they do not count by the same (tokens)."""
        if self.under != after.under:
            return None
        differences = [b - a for a, b in zip(self.over, after.over, strict=True)]
        if self.under is None:
            found = bounded_mean(differences, -1, seed)
        else:
            found = bootstrap_ratio(differences, self.under, seed)
        verdicts = self.under is None and self.samples == 1
        gained, lost = (sum(d > 0 for d in differences), sum(d < 0 for d in differences)) if verdicts else (None, None)
        return {
            "before": as_plain(self.estimate(seed)),
            "after": as_plain(after.estimate(seed)),
            "difference": found.value,
            "low": found.low,
            "high": found.high,
            "gained": gained,
            "lost": lost,
            "mcnemar_p": None if gained is None or lost is None else mcnemar(gained, lost),
        }


def measures(kind: str, rows: Sequence[Mapping[str, Any]], samples: int = 1) -> dict[str, Measured]:
    """Every measure of a task of this kind, from the objects of its rows file (docs/evaluation.md, Numbers)."""

    def column(name: str, factor: float = 1.0) -> tuple[float, ...]:
        return tuple(factor * row[name] for row in rows)

    if kind == "generate":
        correct = [row["verdict"] == Verdict.CORRECT for row in rows]
        shares = [sum(correct[i : i + samples]) / samples for i in range(0, len(correct), samples)]
        return {"accuracy": Measured(tuple(shares), samples=samples)}
    if kind == "choice":
        shares_of = {name: Measured(column(name)) for name in ("acc", "acc_norm")}
        return {**shares_of, "nats_per_token": Measured(column("gold_nats"), column("gold_tokens"))}
    return {
        "bits_per_byte": Measured(column("nats", 1 / math.log(2)), column("bytes")),
        "nats_per_token": Measured(column("nats"), column("tokens")),
    }


def main_value(document: Mapping[str, Any]) -> float:
    """Of a result: the value of the measure that counts."""
    result = document["result"]
    return float(result["metrics"][result["metric"]]["value"])


def as_plain(estimate: Estimate) -> dict[str, float]:
    """As the result files hold it."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def compare_students(before: Path, after: Path, seed: int = 42, names: tuple[str, str] | None = None) -> dict[str, Any]:
    """Compare two students on every task that one of them has done, as `changes.json` has it.

    Args:
        before: a student's folder of results, such as RUN/eval/base.
        after: another one's.
        seed: of the bootstrap.
        names: what the two are called; None: as their folders.
    """
    changes: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    first, second = names or (before.name, after.name)
    for task in sorted({*tasks_done(before), *tasks_done(after)}):
        try:
            changes.append(compare_results(before, after, task, seed, (first, second)))
        except RunError as error:
            missing.append({"task": task, "why": str(error)})
    return {"format": FORMAT, "before": first, "after": second, "changes": changes, "missing": missing}


def compare_results(
    before: Path, after: Path, task: str, seed: int = 42, names: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Compare two students' results on one task: difference with a paired bootstrap, exact McNemar.

    Arguments as for `compare_students`, and the task.

    Raises:
        RunError: a result is not there, or they are not of the same rows, prompt and decoding.
    """
    results = []
    names = names or (before.name, after.name)
    for folder, name in zip((before, after), names, strict=True):
        if not result_path(folder, task).is_file():
            raise RunError(f"{name} has no finished result on {task}; evaluate it")
        results.append(whole_result(folder, task))
    first, second = results
    _same(first, second, names)
    kind, samples = first["task"]["kind"], first["result"]["samples"]
    one, other = (measures(kind, read_attempts(rows_path(folder, task)), samples) for folder in (before, after))
    found = {name: one[name].change(other[name], seed) for name in one}
    main = second["result"]["metric"]
    changes = {name: change for name, change in found.items() if change is not None}
    share = one[main].under is None
    return {
        "task": task,
        "version": first["task"]["version"],
        "role": second["role"],
        "kind": kind,
        "metric": main,
        "better": "higher" if share else "lower",
        "rows": first["result"]["rows"],
        "samples": samples,
        "before": _accuracy(first),
        "after": _accuracy(second),
        **{name: changes[main][name] for name in ("difference", "low", "high", "gained", "lost", "mcnemar_p")},
        "metrics": changes,
        "resamples": RESAMPLES,
        "seed": seed,
    }


def describe_changes(document: Mapping[str, Any]) -> list[str]:
    """A line for each task: the comparison, or why there is none."""
    lines = []
    for change in document["changes"]:
        test = "" if change["mcnemar_p"] is None else f", McNemar p = {change['mcnemar_p']:.3g}"
        main = change["metrics"][change["metric"]]
        before, after = main["before"]["value"], main["after"]["value"]
        if change["better"] == "higher":
            moved = f"{100 * before:.1f} -> {100 * after:.1f} %, {100 * change['difference']:+.1f} points "
            moved += f"({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"
        else:
            moved = f"{before:.4f} -> {after:.4f} {UNITS[change['metric']]}, {change['difference']:+.4f} "
            moved += f"({change['low']:+.4f} to {change['high']:+.4f}; less is better)"
        lines.append(f"{change['task']}: {moved}, {change['rows']} rows{test}")
    return lines + [f"{entry['task']}: not compared, {entry['why']}" for entry in document["missing"]]


def _same(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Raise RunError unless both students were asked the same."""

    def asked(result: Mapping[str, Any]) -> dict[str, Any]:
        decoding = {k: v for k, v in (result["decoding"] or {}).items() if k not in ("stop", "seed")}
        return {**result["task"], "data": result["data"]["hash"], **decoding}

    one, other = asked(first), asked(second)
    differing = [name for name in one if one[name] != other.get(name)]
    if differing:
        raise RunError(
            f"{' and '.join(names)} were not asked the same on {first['task']['name']} "
            f"({', '.join(differing)} differ); evaluate one of them again"
        )


def _accuracy(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: result["result"][name] for name in ("accuracy", "low", "high")}
