"""The lab's scripted teachers, behind the protocol of real ones."""

from __future__ import annotations

from compact_distill.errors import ConfigError, DataError
from compact_distill.lab.teachers import pool
from compact_distill.teachers.protocol import Answer, FaultKind, Request, TeacherFault


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

    async def ask(self, request: Request) -> Answer:
        """Write a rationale.

        Raises:
            TeacherFault: the problem is not one of the lab's.
        """
        try:
            text = self._script.write(request.problem, request.sample)
        except DataError as error:
            raise TeacherFault(FaultKind.BAD_REQUEST, str(error)) from None
        return Answer(text=text, finish_reason="stop", model=self._script.name)

    async def close(self) -> None:
        return None
