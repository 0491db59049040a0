"""Result files of evaluations, as docs/evaluation.md defines them: where they are, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compact_distill.errors import RunError
from compact_distill.runs.files import atomic_write

FORMAT = 1
BASE, STUDENT = "base", "student"
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} must be a result of `compact eval`, but cannot be read ({error!r}); remove it"
        ) from error
    if found != FORMAT:
        raise RunError(f"{path} must have format {FORMAT}, got {found!r}; evaluate again with this version of compact")
    return dict(document)


def write_result(path: str | Path, document: Mapping[str, Any]) -> None:
    """Write such a file; it appears whole. Raises ValueError for NaN and infinity."""
    with atomic_write(path) as file:
        json.dump(document, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The attempts of a result, in order. Raises RunError for a line that is no JSON object."""
    rows = []
    for number, line in enumerate(_lines(Path(path)), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunError(f"{path}, line {number}: must be JSON ({error}); evaluate again") from error
        if not isinstance(row, dict):
            raise RunError(f"{path}, line {number}: must be a JSON object, got {line[:60]!r}; evaluate again")
        rows.append(row)
    return rows


def tasks_done(folder: str | Path) -> list[str]:
    """Names of the tasks with a finished result in a student's folder, in alphabetical order."""
    return sorted(path.stem for path in Path(folder).glob("*.json"))


def _lines(path: Path) -> Iterator[str]:
    try:
        # Not by text methods, which would also split at U+2028 inside a text.
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from file
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; evaluate again") from error
