"""What may become or continue a run folder, and the manifest that says what was done in it."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compact_distill.errors import RunError
from compact_distill.runs.files import content_hash, move_aside
from compact_distill.runs.progress import say

FORMAT = 1
_LONGEST_NAME = 255  # bytes, on every file system in use


def now() -> str:
    """The time as a manifest has it: UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def output_problem(path: str | Path) -> str | None:
    """Why a path cannot become or continue a run folder, as a message; None where it can."""
    try:
        return _output_problem(Path(path))
    except OSError as error:  # too long a name, a folder that may not be looked into
        return f"output {path} cannot be used: {error.strerror}; choose another `output:`"


def _output_problem(path: Path) -> str | None:
    if path.exists() and not path.is_dir():
        return f"output must be a folder, but {path} is a file; choose another `output:`"
    if (
        path.is_dir()
        and not (path / "manifest.json").exists()
        and not is_ours(path)
        and any(not p.name.startswith(".") for p in path.iterdir())
    ):
        return f"output must be new, empty or a run folder, but {path} holds other files; choose another `output:`"
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        return f"output {path} cannot be used: File name too long; choose another `output:`"
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        return f"output {path} cannot be written: no permission in {nearest}; choose another `output:`"
    return None


def is_ours(path: Path) -> bool:
    """Whether a run has been written in this folder: its lock says who held it, even where the manifest is gone."""
    try:
        return (path / ".lock").read_text(encoding="utf-8").startswith("process ")
    except (OSError, ValueError):
        return False


def outputs_record(run: Path, files: Iterable[Path]) -> dict[str, list[Any]]:
    """What a stage wrote, by path below the run folder: size and hash."""
    return {file.relative_to(run).as_posix(): [file.stat().st_size, content_hash(file)] for file in sorted(files)}


def damage_of(run: Path, record: Mapping[str, Any], verify: bool) -> dict[str, str]:
    """What of a finished stage's outputs is no longer as its record has it: file and what is wrong with it."""
    wrong: dict[str, str] = {}
    for name, (size, digest) in (record.get("outputs") or {}).items() if record.get("finished") else ():
        file = run / name
        if not file.is_file():
            wrong[name] = "is missing"
        elif (found := file.stat().st_size) != size:
            wrong[name] = f"has {found} bytes, not {size}"
        elif verify and content_hash(file) != digest:
            wrong[name] = "has other contents than were written"
    return wrong


def new_manifest() -> dict[str, Any]:
    """The manifest of a run that has not begun."""
    return {"format": FORMAT, "started": now(), "finished": None, "stages": {}}


class _Damaged(RunError):
    pass


def manifest_to_go_on_with(path: Path, ours: bool) -> tuple[dict[str, Any], bool]:
    """A run's manifest and whether it stands in the file; a new one for a new folder, or where ours is damaged."""
    if not path.is_file():
        if ours:
            say(f"{path} is gone; a new one is begun. What it alone proved is done again; rationales are kept")
        return new_manifest(), False
    try:
        return read_manifest(path), True
    except _Damaged:
        if not ours:  # nobody has written a run here
            raise
        aside = move_aside(path)
        say(f"{path} was damaged; it is now {aside.name}. What it alone proved is done again; rationales are kept")
        return new_manifest(), False


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, checked as far as it is read back. Raises RunError where it is damaged or of another format."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        for record in manifest["stages"].values():
            str(record["inputs"]), record["finished"], record.setdefault("summary", {}).items()
            for size, digest in record.setdefault("outputs", {}).values():
                int(size), str(digest)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(
            f"{path} is damaged ({error!r}); `compact run` with this output starts a new one and keeps what is there, "
            "or choose another `output:`"
        ) from error
    if found != FORMAT:
        raise RunError(f"{path} must have format {FORMAT}, got {found!r}; use the version of compact that wrote it")
    return dict(manifest)
