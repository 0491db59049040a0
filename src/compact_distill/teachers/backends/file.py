"""Teachers that compute nothing: rationales that exist already in a file, and the scripts of the lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from compact_distill.errors import ConfigError, DataError
from compact_distill.lab import pool
from compact_distill.teachers.protocol import FaultKind, TeacherAnswer, TeacherFault, TeacherRequest


class FileTeacher:
    """Rationales of a JSONL with the fields id, text and, where there are several, sample and teacher."""

    def __init__(self, name: str, path: str) -> None:
        """Note where each rationale stands; the texts stay in the file, which is opened again when one is asked for.

        Raises:
            DataError: the file cannot be read, or a row of it breaks a rule; every such row is named.
        """
        self.name = name
        self._path = Path(path)
        self._file: IO[bytes] | None = None
        self._offsets: dict[tuple[str, int], int] = {}
        wrong = []
        offset = 0
        try:
            with self._path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        if line.strip():
                            self._note(json.loads(line), offset)
                    except (ValueError, RecursionError) as error:
                        wrong.append(f"teacher {name}: {path}, line {number}: {error}")
                    offset += len(line)
        except OSError as error:
            raise DataError(f"teacher {name}: {path} must be readable: {error.strerror}; check `path`") from None
        if wrong:
            raise DataError(wrong)

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Look one rationale up.

        Raises:
            TeacherFault: the file does not hold it.
        """
        offset = self._offsets.get((request.problem.id, request.sample))
        if offset is None:
            message = f"no rationale for problem {request.problem.id!r}, sample {request.sample}, in the file"
            raise TeacherFault(FaultKind.ABSENT, message)
        if self._file is None:
            self._file = self._path.open("rb")
        self._file.seek(offset)
        row = json.loads(self._file.readline())
        return TeacherAnswer(text=row["text"], reasoning=row.get("reasoning") or "", model=row.get("model"))

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _note(self, row: object, offset: int) -> None:
        if not isinstance(row, dict):
            raise ValueError("each line must be a JSON object; write one rationale a line")
        if row.get("teacher", self.name) != self.name:
            return
        problem, sample = row.get("id"), row.get("sample", 0)
        if not isinstance(problem, str) or not isinstance(row.get("text"), str) or not isinstance(sample, int):
            raise ValueError("id and text must be strings and sample a number; write {id, text, sample}")
        if (problem, sample) in self._offsets:
            raise ValueError(f"problem {problem!r}, sample {sample} stands twice; keep one of them")
        self._offsets[problem, sample] = offset


class LabTeacher:
    """One of the lab's scripted teachers."""

    def __init__(self, name: str, script: str) -> None:
        """Find the script by its name.

        Raises:
            ConfigError: the lab has no such script.
        """
        scripts = {s.name: s for s in pool()}
        if script not in scripts:
            known = ", ".join(scripts)
            raise ConfigError(f"teacher {name}: model must be one of {known} with backend lab, got {script!r}")
        self.name = name
        self._script = scripts[script]

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Write a rationale.

        Raises:
            TeacherFault: the problem is not one of the lab's.
        """
        try:
            text = self._script.write(request.problem, request.sample)
        except DataError as error:
            raise TeacherFault(FaultKind.BAD_REQUEST, str(error)) from None
        return TeacherAnswer(text=text, finish_reason="stop", model=self._script.name)

    async def close(self) -> None:
        return None
