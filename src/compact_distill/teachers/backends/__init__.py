"""Where rationales come from: servers, local models, a Ray cluster, files, the lab; made from the YAML's teachers."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from compact_distill.config.teachers import GenerationConfig, RayConfig, TeacherConfig
from compact_distill.data.load import need_id, to_rationale
from compact_distill.data.read import Faults, Row, raise_if_any
from compact_distill.errors import ConfigError, DataError, InputError, shown
from compact_distill.lab import pool
from compact_distill.records import RationaleStatus
from compact_distill.runs.files import JsonLine, json_lines
from compact_distill.teachers.ask import Limits
from compact_distill.teachers.protocol import (
    FaultKind,
    Prompting,
    Redactor,
    TeacherAnswer,
    TeacherBackend,
    TeacherFault,
    TeacherRequest,
)

_SERVER_SECONDS = 600.0
_EMPTY_RETRIES = 2


@dataclass(frozen=True, slots=True)
class Member:
    """One teacher of the pool with everything that its configuration says."""

    config: TeacherConfig
    teacher: TeacherBackend
    prompting: Prompting
    limits: Limits
    redact: Redactor


def build(teachers: Sequence[TeacherConfig], generation: GenerationConfig) -> list[Member]:
    """Prepare every teacher; nothing is sent and no model is loaded.

    Raises:
        ConfigError: keys that are not set, files that cannot be read, missing extras; of all teachers at once.
    """
    redact = Redactor(t.api_key_env for t in teachers)
    members, wrong = [], []
    for config in teachers:
        try:
            teacher = _teacher(config, redact)
        except InputError as error:
            wrong += [p if config.name in p else f"teacher {config.name}: {p}" for p in error.problems]
        else:
            members.append(Member(config, teacher, Prompting(config), limits(config, generation), redact))
    if wrong:
        raise ConfigError(wrong)
    return members


def _teacher(config: TeacherConfig, redact: Redactor) -> TeacherBackend:
    return local_teacher(config, redact) if config.ray is None else RayTeacher(config, config.ray)


def limits(config: TeacherConfig, generation: GenerationConfig) -> Limits:
    """The limits within which this teacher is asked."""
    return Limits(
        timeout=config.timeout or (_SERVER_SECONDS if config.backend == "openai" else None),
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
        max_retries=generation.max_retries,
        max_wait=generation.max_wait,
        patience=generation.patience,
        max_empty=_EMPTY_RETRIES if config.backend == "openai" else 0,
    )


def local_teacher(config: TeacherConfig, redact: Redactor) -> TeacherBackend:
    """Make the teacher in this process, whatever `ray:` says.

    Raises:
        InputError: the teacher cannot be made.
    """
    if config.backend == "openai":
        from compact_distill.teachers.backends.openai import OpenAITeacher

        return OpenAITeacher(config.name, str(config.model), str(config.base_url), config.api_key_env, redact)
    if config.backend == "transformers":
        from compact_distill.teachers.backends.transformers import TransformersTeacher

        return TransformersTeacher(
            config.name, str(config.model), config.batch_size, config.device, config.template_options
        )
    if config.backend == "jsonl":
        return FileTeacher(config.name, str(config.path))
    return LabTeacher(config.name, str(config.model))


# ---- teachers that compute nothing: rationales that exist already in a file, and the scripts of the lab


class FileTeacher:
    """Rationales of a JSONL, its rows as those of training data (docs/files.md), each with an id of its own.

    A row without text, or with a status other than "ok", counts as not there.
    """

    def __init__(self, name: str, path: str) -> None:
        """Note where each rationale stands; the texts stay in the file, which is opened again when one is asked for.

        Raises:
            DataError: the file cannot be read, or a row of it breaks a rule; every such row is named.
        """
        self.name = name
        self._path = Path(path)
        self._file: IO[bytes] | None = None
        self._offsets: dict[tuple[str, int], int] = {}
        faults = Faults(f"teacher {name}: {path}")
        try:
            with self._open() as file:
                for line in json_lines(file, by_hand=True):
                    if line.wrong:
                        faults.add(f"line {line.number}", line.wrong)
                    elif line.row.get("teacher", name) == name:
                        self._note(line, faults)
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"teacher {name}: {path} must be readable: {reason}; check `path`") from None
        raise_if_any([faults])

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
            self._file = self._open()
        self._file.seek(offset)
        row = next(json_lines(self._file, by_hand=True)).row
        return TeacherAnswer(text=row["text"] or "", reasoning=row.get("reasoning") or "", model=row.get("model"))

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> IO[bytes]:
        """The file; what gzip packed is unpacked into a temporary one, in which a line is found by its place."""
        file = self._path.open("rb")
        if not file.peek(2).startswith(b"\x1f\x8b"):
            return file
        whole = TemporaryFile()  # noqa: SIM115 (the caller closes it, as it would the file)
        with file, gzip.open(file) as packed:
            shutil.copyfileobj(packed, whole)
        whole.seek(0)
        return whole

    def _note(self, line: JsonLine, faults: Faults) -> None:
        """Note where a rationale stands, unless the row says that there is none, by the rules of all rationales."""
        before, where, row = faults.count, f"line {line.number}", line.row
        problem = need_id(Row(row, line.number, where), faults)
        rationale = to_rationale({"teacher": self.name, **row}, where, faults)
        for key in ("reasoning", "model"):
            if not isinstance(row.get(key), str | None):
                faults.add(where, f"{key} must be text, got {shown(row[key])}; write text or null")
        if rationale is None or faults.count > before:
            return
        failed = rationale.extra.get("status") not in (None, RationaleStatus.OK)
        if failed or not (rationale.text or (row.get("reasoning") or "").strip()):
            return
        if (problem, rationale.sample) in self._offsets:
            faults.add(where, f"problem {problem!r}, sample {rationale.sample} stands twice; keep one of them")
        self._offsets[problem, rationale.sample] = line.offset


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


# ---- the same teachers on a Ray cluster


class RayTeacher:
    """A teacher as actors of a Ray cluster: local models on many machines, or many machines asking servers.

    Requests spread over the actors, each to the one with the fewest in flight. The actors only ask. Limits, retries,
    verification and the store stay with the one process that started the run, so a run on a cluster is stored and
    resumed like any other.
    """

    def __init__(self, config: TeacherConfig, ray_config: RayConfig) -> None:
        """Check that Ray is there; the cluster is joined when the first request comes.

        Raises:
            ConfigError: the extra [ray] is not installed.
        """
        try:
            import ray
        except ImportError:
            message = "`ray:` needs the extra [ray]; pip install 'compact-distill[ray]', or remove the key"
            raise ConfigError(message) from None
        self.name = config.name
        self._ray = ray
        self._config = config
        self._settings = ray_config
        self._actors: list[Any] = []
        self._flying: list[int] = []
        self._started = asyncio.Lock()
        self._joined_here = False

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Let an actor ask.

        Raises:
            TeacherFault: there is no answer, or the actor's machine is gone.
        """
        async with self._started:
            if not self._actors:
                await asyncio.to_thread(self._start)
        number = min(range(len(self._actors)), key=self._flying.__getitem__)
        self._flying[number] += 1
        try:
            return await self._actors[number].ask.remote(request)
        except self._ray.exceptions.RayTaskError as error:
            # Ray wraps what the actor raised, and repeats its traceback.
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except self._ray.exceptions.RayError as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise TeacherFault(FaultKind.SERVER, message) from None
        finally:
            self._flying[number] -= 1

    async def close(self) -> None:
        """End the actors, and the local cluster if this teacher started it."""
        # Another teacher may have left the cluster already, which ended these actors too.
        if self._ray.is_initialized():
            for actor in self._actors:
                self._ray.kill(actor)
            if self._joined_here:
                await asyncio.to_thread(self._ray.shutdown)
        self._actors = []

    def _start(self) -> None:
        if not self._ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # RAY_ADDRESS names the cluster; without it Ray starts one on this machine.
            self._ray.init(log_to_driver=False, include_dashboard=False)
            self._joined_here = True
        settings, count = self._settings, self._settings.actors
        actor = self._ray.remote(_Actor).options(
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus,
            max_concurrency=-(-self._config.concurrency // count) + 1,
            max_restarts=-1,
        )
        # The key is not in the configuration: each machine has it in its own environment.
        plain = self._config.model_dump()
        self._actors = [actor.remote(plain) for _ in range(count)]
        self._flying = [0] * count


class _Actor:
    """One copy of the teacher, somewhere in the cluster."""

    def __init__(self, plain: dict[str, Any]) -> None:
        config = TeacherConfig.model_validate(plain)
        try:
            self._teacher: TeacherBackend = local_teacher(config, Redactor([config.api_key_env]))
        except InputError as error:
            self._wrong: str | None = str(error)  # an exception here would only show as a dead actor
        else:
            self._wrong = None

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        if self._wrong is not None:
            raise TeacherFault(FaultKind.UNUSABLE, f"on a machine of the cluster: {self._wrong}")
        return await self._teacher.ask(request)
