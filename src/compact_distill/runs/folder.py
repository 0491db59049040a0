"""The run folder: where everything in it stands, one process that writes it, and which of its stages are done.

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
    before.DATE/    a student that was trained here before the inputs changed, with all that is known of it
    damaged.DATE/   files that were no longer what a stage had written

Files appear whole or not at all (written aside, synced, renamed), except those that grow row by row: the stores, the
trace, the training log, replies of a benchmark that goes on. A last line that a crash tore is cut off, or moved aside,
when they are opened again. One process writes a run at a time.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from compact_distill.errors import RunError
from compact_distill.records import Closing, ScoreRow, score_fields
from compact_distill.runs.files import (
    DamagedManifest,
    Lock,
    StepLog,
    atomic_write,
    content_hash,
    dated_name,
    is_aside,
    is_ours,
    json_line,
    move_aside,
    new_manifest,
    now,
    output_problem,
    read_jsonl,
    read_manifest,
)
from compact_distill.runs.progress import say

_OF_STUDENT = ("data", "train", "gains", "eval")  # stages whose files `set_aside` moves
_BASE_RESULTS = "base"  # of eval/: they are of the untrained student
_UNFINISHED = re.compile(r"\.[a-z_]+\.(?:json|jsonl|yaml|html)\.\d+\.tmp")  # as `atomic_write` names it


class RunFolder(Closing):
    """A run folder, open for reading (`RunFolder.open`) or, by one process at a time, for writing (`RunFolder.claim`).

    Use a claimed folder in a `with` block; leaving it gives the lock back.
    """

    is_follower = False  # whether another rank of the same job claims and writes this run

    def __init__(self, path: Path, lock: Lock | None, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self.config_path = path / "config.yaml"
        self.manifest_path = path / "manifest.json"
        self.rationales_path = path / "rationales"
        self.training_path = path / "rationales.jsonl"
        self.student_path = path / "student"
        self.data_path = path / "data.jsonl"
        self.scores_path = path / "scores.jsonl"
        self.training_log_path = path / "training_log.jsonl"
        self.gains_path = path / "gains.jsonl"
        self.eval_path = path / "eval"
        self.report_path = path / "report.html"

    def written_at(self, path: Path, with_rationales: bool = False) -> Path | None:
        """The file or folder of a run that `path` is, or lies in; None where it is none of what a run writes."""
        own = [self.config_path, self.manifest_path, self.student_path, self.data_path, self.scores_path]
        own += [self.training_log_path, self.gains_path, self.eval_path, self.report_path]
        own += [self.rationales_path, self.training_path] if with_rationales else []
        resolved = path.resolve()
        return next((o for o in own if resolved == o.resolve() or o.resolve() in resolved.parents), None)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run for reading. Raises RunError where there is none or its format is newer."""
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise RunError(f"{path} must be a run folder, but holds no manifest.json; `compact run` makes one")
        return cls(path, None, read_manifest(path / "manifest.json"))

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
        ours = is_ours(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = Lock(path / ".lock", path)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}; choose another `output:`") from error
        try:
            for leftover in path.glob(".*.tmp"):  # of a process that was killed while it wrote; not a user's own
                if _UNFINISHED.fullmatch(leftover.name) and leftover.is_file():
                    leftover.unlink()
            manifest, known = _manifest_to_go_on_with(path / "manifest.json", ours)
            run = cls(path, lock, manifest)
            if not known:
                run._save_manifest()
        except BaseException:
            lock.close()
            raise
        return run

    @classmethod
    def follow(cls, path: str | Path) -> RunFolder:
        """Work on a run that another rank of the same job claims and writes: all that is written here goes nowhere."""
        path = Path(path)
        known = (path / "manifest.json").is_file()
        return _Follower(path, None, read_manifest(path / "manifest.json") if known else new_manifest())

    def close(self) -> None:
        """Give the lock back. Nothing can be written afterwards."""
        if self._lock is not None:
            self._lock.close()
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
    def stage(
        self,
        name: str,
        inputs: str,
        outputs: Callable[[], Iterable[Path]] = tuple,
        parts: Mapping[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Record a stage's start and, unless the block raises, its end and what it wrote.

        Args:
            name: the stage.
            inputs: fingerprint of everything it reads; a later run redoes it where this differs.
            outputs: gives the stage's files once it has ended; their sizes and hashes are recorded.
            parts: what `inputs` is the fingerprint of, to say later which of it has changed.

        Yields:
            A dictionary for the stage's summary, stored when it ends.
        """
        self._must_write()
        summary: dict[str, Any] = {}
        record: dict[str, Any] = {"inputs": inputs, "started": now(), "finished": None, "summary": summary}
        record |= {"parts": dict(parts)} if parts else {}
        self.manifest["stages"][name] = record
        self.manifest["finished"] = None
        self._save_manifest()
        yield summary
        self._record_outputs(record, outputs())
        record["finished"] = now()
        self._save_manifest()

    def _record_outputs(self, record: dict[str, Any], files: Iterable[Path]) -> None:
        record["outputs"] = {
            file.relative_to(self.path).as_posix(): [file.stat().st_size, content_hash(file)] for file in sorted(files)
        }

    def training_outputs(self) -> list[Path]:
        """What training leaves when it ends: the student, without its checkpoints, and how it got there."""
        # The model card is written later, and again.
        student = [p for p in self.student_path.glob("*") if p.is_file() and not p.name.startswith("README.md")]
        return [*student, *(path for path in (self.scores_path, self.training_log_path) if path.exists())]

    def results(self) -> list[Path]:
        """The results of base and student, and what compares them."""
        folders = [self.eval_path / _BASE_RESULTS, self.eval_path / "student", self.eval_path]
        found = [path for folder in folders for path in folder.glob("*.json*")]
        return [path for path in found if path.is_file() and path.suffix in (".json", ".jsonl")]

    def damage(self, stage: str, verify: bool = False) -> dict[str, str]:
        """What a finished stage wrote and is no longer as it was: file and what is wrong with it, empty where all is.

        Args:
            stage: its name.
            verify: read the files whole and compare their hashes; else only that they are there, and their sizes.
        """
        wrong: dict[str, str] = {}
        record = self.manifest["stages"].get(stage, {})
        for name, (size, digest) in (record.get("outputs") or {}).items() if record.get("finished") else ():
            file = self.path / name
            if not file.is_file():
                wrong[name] = "is missing"
            elif (found := file.stat().st_size) != size:
                wrong[name] = f"has {found} bytes, not {size}"
            elif verify and content_hash(file) != digest:
                wrong[name] = "has other contents than were written"
        return wrong

    def put_damage_aside(self, names: Iterable[str]) -> Path | None:
        """Move damaged files out of the way of those that will be written in their place; returns where they are."""
        self._must_write()
        there = [self.path / name for name in names if (self.path / name).exists()]
        aside = dated_name(self.path / "damaged")
        for file in there:
            _move(file, aside / file.relative_to(self.path))
        return aside if there else None

    def finish(self) -> None:
        """Record that the run has done all its stages."""
        self.update_manifest(finished=now())

    def set_aside(self, discard: bool = False) -> Path | None:
        """Move the student and all that is known of it out of the way: they belong to inputs that have changed.

        They go into a dated folder of this run, with copies of its configuration, manifest and the base's results: a
        run folder of its own, which can be reported on, evaluated and moved back.

        Args:
            discard: delete them instead; the user says so.

        Returns:
            That folder; None where there was nothing or it is gone.
        """
        self._must_write()
        there, made_at_once = self._of_student(), (self.data_path, self.report_path)
        keep = not discard and any(path not in made_at_once for path in there)
        aside = dated_name(self.path / "before") if keep else None
        if aside is not None:
            aside.mkdir()
            for path in (self.config_path, self.manifest_path, self.training_path):
                if path.exists():
                    shutil.copy2(path, aside)
            if (self.eval_path / _BASE_RESULTS).is_dir():
                shutil.copytree(self.eval_path / _BASE_RESULTS, aside / "eval" / _BASE_RESULTS)
        for path in there:
            if aside is not None:
                _move(path, aside / path.relative_to(self.path))
            else:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for stage in _OF_STUDENT:
            self.manifest["stages"].pop(stage, None)
        self._save_manifest()
        return aside

    def take_back(self, inputs: str) -> Path | None:
        """Undo `set_aside` for a student that was trained with exactly these inputs; returns where it was."""
        self._must_write()
        for aside in sorted(self.path.glob("before.*"), reverse=True):
            with contextlib.suppress(RunError):
                then = RunFolder.open(aside)
                if then.stage_is_done("train", inputs) and not then.damage("train", verify=True):
                    with Lock(aside / ".lock", aside):  # unless somebody works on it now
                        self._move_back(then)
                    return aside
        return None

    def _move_back(self, then: RunFolder) -> None:
        for path in then._of_student():
            _move(path, self.path / path.relative_to(then.path))
        stages = then.manifest["stages"]
        self.manifest["stages"].update({name: stages[name] for name in _OF_STUDENT if name in stages})
        self._save_manifest()
        for path in (then.manifest_path, then.config_path, then.training_path, then.path / ".lock"):  # copies
            path.unlink(missing_ok=True)
        base, own = then.eval_path / _BASE_RESULTS, self.eval_path / _BASE_RESULTS
        if base.is_dir() and own.is_dir() and content_hash(base) == content_hash(own):
            shutil.rmtree(base)
        for folder in (then.eval_path, then.path):  # what somebody has put or measured there since stays there
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _of_student(self) -> list[Path]:
        """What there is of the student and is known of it alone."""
        known = (self.scores_path, self.training_log_path, self.gains_path, self.data_path, self.report_path)
        results = [path for path in self.eval_path.glob("*") if path.name != _BASE_RESULTS and not is_aside(path)]
        student = [self.student_path] if any(self.student_path.glob("*")) else []
        return [path for path in (*student, *known, *results) if path.exists()]

    def write_rows(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
        """Write a JSONL file of the run, whole or not at all; returns the number of rows."""
        self._must_write()
        count = 0
        with atomic_write(path) as file:
            for row in rows:
                file.write(json_line(row))
                count += 1
        return count

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


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


class _Follower(RunFolder):
    """A run folder for ranks other than the first: it knows the stages, and leaves the writing to the first rank."""

    is_follower = True

    def write_config(self, text: str) -> None:
        pass

    def set_aside(self, discard: bool = False) -> Path | None:
        return None

    def take_back(self, inputs: str) -> Path | None:
        return None

    def put_damage_aside(self, names: Iterable[str]) -> Path | None:
        return None

    def _record_outputs(self, record: dict[str, Any], files: Iterable[Path]) -> None:
        pass

    def write_rows(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
        return 0

    def _must_write(self) -> None:
        pass

    def _save_manifest(self) -> None:
        pass


def _manifest_to_go_on_with(path: Path, ours: bool) -> tuple[dict[str, Any], bool]:
    """A run's manifest and whether it stands in the file; a new one for a new folder, or where ours is damaged."""
    if not path.is_file():
        if ours:
            say(f"{path} is gone; a new one is begun. What it alone proved is done again; rationales are kept")
        return new_manifest(), False
    try:
        return read_manifest(path), True
    except DamagedManifest:
        if not ours:  # nobody has written a run here
            raise
        aside = move_aside(path)
        say(f"{path} was damaged; it is now {aside.name}. What it alone proved is done again; rationales are kept")
        return new_manifest(), False


class ScoreTrace(StepLog):
    """The trace: scores and weights, one line per problem and epoch.

    A line is a `ScoreRow` plus "epoch" and "step": how many epochs and optimizer steps were done when the problem was
    read. A resume from step N calls `truncate(N)`: what came later will be read again.
    """

    def append(self, rows: Iterable[ScoreRow], *, epoch: float, step: int) -> None:
        """Add rows that were read when `epoch` epochs and `step` optimizer steps were done."""
        now = {"epoch": round(epoch, 6), "step": step}
        self.write({**now, **score_fields(row), "statuses": list(row.statuses)} for row in rows)
