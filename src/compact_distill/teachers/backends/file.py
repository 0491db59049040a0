"""Rationales that exist already, in a file."""

from __future__ import annotations

import json
from pathlib import Path

from compact_distill.errors import DataError
from compact_distill.teachers.protocol import Answer, FaultKind, Request, TeacherFault


class FileTeacher:
    """Rationales of a JSONL with the fields id, text and, where there are several, sample and teacher."""

    def __init__(self, name: str, path: str) -> None:
        """Note where each rationale stands; the texts stay in the file.

        Raises:
            DataError: the file cannot be read, or a row of it breaks a rule; every such row is named.
        """
        self.name = name
        self._offsets: dict[tuple[str, int], int] = {}
        wrong = []
        try:
            self._file = Path(path).open("rb")  # noqa: SIM115 - stays open as long as the teacher lives
        except OSError as error:
            raise DataError(f"teacher {name}: {path} must be readable: {error.strerror}; check `path`") from None
        offset = 0
        for number, line in enumerate(self._file, start=1):
            try:
                if line.strip():
                    self._note(json.loads(line), offset)
            except (ValueError, RecursionError) as error:
                wrong.append(f"teacher {name}: {path}, line {number}: {error}")
            offset += len(line)
        if wrong:
            raise DataError(wrong)

    async def ask(self, request: Request) -> Answer:
        """Look one rationale up.

        Raises:
            TeacherFault: the file does not hold it.
        """
        offset = self._offsets.get((request.problem.id, request.sample))
        if offset is None:
            message = f"no rationale for problem {request.problem.id!r}, sample {request.sample}, in the file"
            raise TeacherFault(FaultKind.ABSENT, message)
        self._file.seek(offset)
        row = json.loads(self._file.readline())
        return Answer(text=row["text"], reasoning=row.get("reasoning") or "", model=row.get("model"))

    async def close(self) -> None:
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
