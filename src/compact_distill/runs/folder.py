"""The run folder: this module is its only writer and reader.

    config.yaml     the configuration, complete with defaults
    manifest.json   versions, hardware, seeds, hashes of the inputs, teachers, prompt, decoding, and the stages done
    rationales/     one store per teacher
    rationales.jsonl  the stores joined: what the student is trained on
    student/        the trained adapter or model, and checkpoint-N while it trains
    data.jsonl      the training data as it was used, with verdicts, statuses and lengths
    scores.jsonl    the trace: scores and weights of every problem and epoch
    training_log.jsonl  losses, gradient norm, throughput and memory over training
    gains.jsonl     where in each rationale the student's belief in the gold answer rises
    eval/           results of benchmarks
    report.html

Files appear whole or not at all (written aside, synced, renamed), except the trace and the training log, which only
grow; a last line that a crash tore is cut off when they are opened again. One process writes a run at a time.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from compact_distill.errors import RunError
from compact_distill.records import ScoreRow
from compact_distill.runs.files import Lock, StepLog, atomic_write, json_line, read_jsonl

FORMAT = 1


class RunFolder:
    """A run folder, open for reading (`RunFolder.open`) or, by one process at a time, for writing (`RunFolder.claim`).

    Use a claimed folder in a `with` block; leaving it gives the lock back.
    """

    def __init__(self, path: Path, lock: Lock | None, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def rationales_path(self) -> Path:
        return self.path / "rationales"

    @property
    def training_path(self) -> Path:
        return self.path / "rationales.jsonl"

    @property
    def is_follower(self) -> bool:
        """Whether another rank of the same job claims and writes this run."""
        return False

    @property
    def student_path(self) -> Path:
        return self.path / "student"

    @property
    def data_path(self) -> Path:
        return self.path / "data.jsonl"

    @property
    def scores_path(self) -> Path:
        return self.path / "scores.jsonl"

    @property
    def training_log_path(self) -> Path:
        return self.path / "training_log.jsonl"

    @property
    def gains_path(self) -> Path:
        return self.path / "gains.jsonl"

    @property
    def eval_path(self) -> Path:
        return self.path / "eval"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run for reading. Raises RunError where there is none or its format is newer."""
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise RunError(f"{path} must be a run folder, but holds no manifest.json; `compact run` makes one")
        return cls(path, None, _read_manifest(path / "manifest.json"))

    @classmethod
    def claim(cls, path: str | Path) -> RunFolder:
        """Open a run for writing; make the folder where there is none.

        Raises:
            RunError: another process writes it; it holds other files; it cannot be written; a newer format.
        """
        path = Path(path)
        problem = output_problem(path)
        if problem:
            raise RunError(problem)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = Lock(path / ".lock", path)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}; choose another `output:`") from error
        try:
            for leftover in path.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink()
            known = (path / "manifest.json").is_file()
            manifest = _read_manifest(path / "manifest.json") if known else _new_manifest()
            run = cls(path, lock, manifest)
            if not known:
                run._save_manifest()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def follow(cls, path: str | Path) -> RunFolder:
        """Work on a run that another rank of the same job claims and writes: all that is written here goes nowhere."""
        path = Path(path)
        known = (path / "manifest.json").is_file()
        return _Follower(path, None, _read_manifest(path / "manifest.json") if known else _new_manifest())

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back. Nothing can be written afterwards."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def write_config(self, text: str) -> None:
        """Store the configuration's YAML."""
        self._must_write()
        with atomic_write(self.config_path) as file:
            file.write(text)

    def update_manifest(self, **sections: Any) -> None:
        """Replace whole sections of the manifest. They must be plain JSON, and never hold a secret."""
        self._must_write()
        self.manifest.update(sections)
        self._save_manifest()

    def stage_is_done(self, name: str, inputs: str) -> bool:
        """Whether the stage has finished with exactly these inputs (a `fingerprint`)."""
        record = self.manifest["stages"].get(name)
        return bool(record and record["inputs"] == inputs and record["finished"])

    def stage_was_begun(self, name: str, inputs: str) -> bool:
        """Whether the stage has started with exactly these inputs, so that its half-done work may be continued."""
        record = self.manifest["stages"].get(name)
        return bool(record and record["inputs"] == inputs)

    def stage_summary(self, name: str) -> dict[str, Any]:
        """What the stage recorded about itself when it finished; empty before."""
        return dict(self.manifest["stages"].get(name, {}).get("summary", {}))

    @contextlib.contextmanager
    def stage(self, name: str, inputs: str) -> Iterator[dict[str, Any]]:
        """Record a stage's start and, unless the block raises, its end.

        Args:
            name: the stage.
            inputs: fingerprint of everything it reads; a later run redoes it where this differs.

        Yields:
            A dictionary for the stage's summary, stored when it ends.
        """
        self._must_write()
        summary: dict[str, Any] = {}
        record = {"inputs": inputs, "started": _now(), "finished": None, "summary": summary}
        self.manifest["stages"][name] = record
        self.manifest["finished"] = None
        self._save_manifest()
        yield summary
        record["finished"] = _now()
        self._save_manifest()

    def finish(self) -> None:
        """Record that the run has done all its stages."""
        self.update_manifest(finished=_now())

    def clear_student(self) -> None:
        """Remove the student, its checkpoints and what is known of it: they belong to inputs that have changed."""
        self._must_write()
        if self.student_path.exists():
            shutil.rmtree(self.student_path)
        for path in (self.scores_path, self.training_log_path, self.gains_path):
            path.unlink(missing_ok=True)
        for stage in ("train", "gains"):
            self.manifest["stages"].pop(stage, None)

    def write_rows(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
        """Write a JSONL file of the run, whole or not at all; returns the number of rows."""
        self._must_write()
        count = 0
        with atomic_write(path) as file:
            for row in rows:
                file.write(json_line(row))
                count += 1
        return count

    def trace(self) -> ScoreTrace:
        """The trace of scores, open to append to."""
        self._must_write()
        return ScoreTrace(self.scores_path)

    def read_scores(self) -> Iterator[dict[str, Any]]:
        """Rows of the trace, in the order of training; none where it does not exist yet."""
        return read_jsonl(self.scores_path)

    def _must_write(self) -> None:
        if self._lock is None:
            raise RunError(f"{self.path} is open for reading only; open it with RunFolder.claim to write")

    def _save_manifest(self) -> None:
        with atomic_write(self.manifest_path) as file:
            json.dump(self.manifest, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")


class _Follower(RunFolder):
    """A run folder for ranks other than the first: it knows the stages, and leaves the writing to the first rank."""

    @property
    def is_follower(self) -> bool:
        return True

    def write_config(self, text: str) -> None:
        pass

    def clear_student(self) -> None:
        pass

    def write_rows(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
        return 0

    def _must_write(self) -> None:
        pass

    def _save_manifest(self) -> None:
        pass


class ScoreTrace(StepLog):
    """The trace: scores and weights, one line per problem and epoch.

    A line is a `ScoreRow` plus "epoch" and "step": how many epochs and optimizer steps were done when the problem was
    read. A resume from step N calls `truncate(N)`: what came later will be read again.
    """

    def append(self, rows: Iterable[ScoreRow], *, epoch: float, step: int) -> None:
        """Add rows that were read when `epoch` epochs and `step` optimizer steps were done."""
        now = {"epoch": round(epoch, 6), "step": step}
        self.write({**now, **score_fields(row), "statuses": list(row.statuses)} for row in rows)


def score_fields(row: ScoreRow) -> dict[str, Any]:
    """A row of scores as `compact score` and the trace write it; `extra_scores` only where users registered some."""
    extra = {name: list(values) for name, values in row.extra_scores.items()}
    return {
        "id": row.id,
        "teachers": list(row.teachers),
        "consensus": list(row.consensus),
        "adaptability": list(row.adaptability),
        "difficulty": list(row.difficulty),
        "weights": list(row.weights),
        **({"extra_scores": extra} if extra else {}),
    }


def output_problem(path: str | Path) -> str | None:
    """Why a path cannot become or continue a run folder, as a message; None where it can."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        return f"output must be a folder, but {path} is a file; choose another `output:`"
    if (
        path.is_dir()
        and not (path / "manifest.json").exists()
        and any(not p.name.startswith(".") for p in path.iterdir())
    ):
        return f"output must be new, empty or a run folder, but {path} holds other files; choose another `output:`"
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        return f"output {path} cannot be written: no permission in {nearest}; choose another `output:`"
    return None


def _new_manifest() -> dict[str, Any]:
    return {"format": FORMAT, "started": _now(), "finished": None, "stages": {}}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
        manifest["stages"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error!r}); choose another `output:` or remove the folder") from error
    if found != FORMAT:
        raise RunError(f"{path} must have format {FORMAT}, got {found!r}; use the version of compact that wrote it")
    return dict(manifest)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
